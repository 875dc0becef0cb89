"""The closing table: runs side by side only if they began from the same figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lape_ds.recipe import load_recipe
from lape_ds.training.outcome import describe_heldout, summarize


def write_run(run_dir: Path, *, before: float, after: float) -> None:
    (run_dir / "model").mkdir(parents=True)
    lines = [{"step": 0, "heldout_bits_per_byte": {"mlt_Latn": before}}]
    lines += [{"step": 9, "heldout_bits_per_byte": {"mlt_Latn": after}}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {"trained_parameters": 5, "parameters": 100, "recipe": {"train": {"method": "full"}}}
    (run_dir / "run.json").write_text(json.dumps(facts))
    (run_dir / "model" / "lape_ds_export.json").write_text(json.dumps({"step": 9, "num_neurons": None}))


def test_a_run_measured_on_other_text_is_named_and_not_compared(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(tiny_recipe, [f"output_dir={tmp_path}"])
    write_run(tmp_path / "train" / "another", before=3.5, after=2.9)
    write_run(tmp_path / "train" / "close", before=2.001, after=1.75)
    write_run(tmp_path / "train" / "subnetwork", before=2.0, after=1.5)
    summarize(recipe)
    table = capsys.readouterr().out
    assert "2.0000" in table
    assert "-0.5000" in table
    assert "-0.2510" in table
    assert "2.9000" not in table
    assert "not in this table: another, measured on other held-out text" in table


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ({0: 2.668, 100: 2.2, 200: 2.1471}, "2.6680 before, 2.1471 after step 200 (the best)"),
        (
            {0: 2.668, 100: 2.1, 200: 2.2},
            "2.6680 before, 2.2000 after step 200 (2.1000 after step 100, the best)",
        ),
        ({0: 2.0, 200: 2.2}, "2.0000 before, 2.2000 after step 200 (no step was better than the base)"),
    ],
    ids=["last", "between", "none"],
)
def test_a_training_tells_its_outcome_in_a_line(
    tmp_path: Path, bits: dict[int, float], expected: str
) -> None:
    lines = [
        {"step": step, "heldout_bits_per_byte": {"mlt_Latn": one, "eng_Latn": one + 2}}
        for step, one in bits.items()
    ]
    lines.insert(1, {"step": 1, "loss": 3.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = describe_heldout(tmp_path, ["mlt_Latn"])
    assert told == f"held-out Maltese, bits per byte: {expected}"
    both = describe_heldout(tmp_path, ["mlt_Latn", "eng_Latn"])
    assert both.startswith(f"held-out mean of 2 languages, bits per byte: {bits[0] + 1:.4f} before")
