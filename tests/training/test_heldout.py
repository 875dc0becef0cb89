"""Held-out measurement inside a training: it changes no bit of it, and under ZeRO-3 it neither hangs nor depends on the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lape_ds.errors import UserError
from lape_ds.model.loading import load_model, load_tokenizer
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.model.scoring import bits_per_byte, score_documents
from lape_ds.recipe import load_recipe, sweep_runs
from lape_ds.training.checkpoint import open_checkpoint
from lape_ds.training.export import export_model
from lape_ds.training.metrics import read_metrics
from tests.conftest import NEURONS
from tests.oracles.subnetwork import entry_positions
from tests.processes import run_ranks
from tests.training.heldout_cases import (
    DOCUMENT_LENGTHS,
    EVERY_THIRD,
    LAYOUTS,
    ODD_TEXTS,
    STEPS,
    Layout,
    overrides,
)
from tests.training.heldout_worker import odd_texts
from tests.training.update_norms import check_update_norms


@pytest.fixture(scope="module")
def trained(tiny_recipe: Path) -> Path:
    """All trainings, on two ranks that start once."""
    run_ranks("tests.training.heldout_worker", [str(tiny_recipe)], world_size=2)
    return tiny_recipe


def run_dir(recipe: Path, layout: Layout, measurement: str) -> Path:
    return load_recipe(str(recipe), overrides(layout, measurement)).run_dir


def training_lines(run: Path) -> list[dict[str, Any]]:
    """What each step says of itself, but for the clock and what only some runs log."""
    clock = ("seconds", "tokens_per_second", "update_norm", "relative_update_norm")
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def measured_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if "heldout_bits_per_byte" in line]


def last_state(run: Path) -> dict[str, torch.Tensor]:
    """Masters and moments of every rank after the last step."""
    reader = open_checkpoint(run / "checkpoints", "last")
    assert reader is not None
    assert reader.state.step == STEPS
    files = sorted(reader.folder.glob("rank-*.safetensors"))
    assert len(files) == 2
    return {f"{path.name}/{name}": value for path in files for name, value in load_file(path).items()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_measuring_changes_no_bit_of_the_training(trained: Path, layout: Layout) -> None:
    without = run_dir(trained, layout, "never")
    state = last_state(without)
    assert {name.split("/")[1].split("|")[0] for name in state} == {"master", "exp_avg", "exp_avg_sq"}
    assert any(value.count_nonzero() for name, value in state.items() if "exp_avg" in name)
    for measurement in layout.measurements:
        run = run_dir(trained, layout, measurement)
        assert training_lines(run) == training_lines(without)  # loss, norm, rate: every digit
        found = last_state(run)
        assert found.keys() == state.keys()
        for name, value in state.items():
            assert torch.equal(found[name].view(torch.int32), value.view(torch.int32)), name
    assert len(training_lines(without)) == STEPS


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_update_norms_of_every_layout(trained: Path, layout: Layout) -> None:
    """Two ranks, all stages, both engines, with and without offload; that logging them changes nothing is shown above."""
    base = {}
    if layout.method == "subnetwork":
        model = load_model(trained.parent / "base", dtype="float32", attn_implementation="sdpa")
        base = {
            name: torch.stack([model.get_parameter(name).detach()[at] for at in positions])
            for name, positions in entry_positions(model, NEURONS["mlt_Latn"]).items()
        }
    check_update_norms(run_dir(trained, layout, "every-step"), base)
    assert "update_norm" not in read_metrics(run_dir(trained, layout, "never") / "metrics.jsonl")[-1]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_any_languages_at_any_interval(trained: Path, layout: Layout) -> None:
    lines = {name: measured_lines(run_dir(trained, layout, name)) for name in layout.measurements}
    each, third = lines["every-step"], lines.get("every-third", [])
    assert [line["step"] for line in each] == [0, 1, 2, 3, 4]
    assert [line["step"] for line in third] == ([0, 3, 4] if layout in EVERY_THIRD else [])
    assert lines["never"] == []
    for line in each:
        languages = ["mlt_Latn", "eng_Latn", "kat_Geor", "cym_Latn", "rus_Cyrl"]
        assert list(line["heldout_bits_per_byte"]) == languages
        assert line["heldout_seconds"] > 0
    for line in third:  # the same text of a language, whatever else is measured
        same = each[line["step"]]["heldout_bits_per_byte"]
        assert line["heldout_bits_per_byte"] == {code: same[code] for code in ("mlt_Latn", "cym_Latn")}
    # Both engines, all stages, with and without offload: the same numbers.
    reference = (
        each if layout.method == "lora" else measured_lines(run_dir(trained, LAYOUTS[0], "every-step"))
    )
    for line, expected in zip(each, reference, strict=True):
        assert line["heldout_bits_per_byte"] == pytest.approx(expected["heldout_bits_per_byte"], rel=1e-5)


def one_process(recipe: Path, folder: Path) -> dict[str, float]:
    """Bits per byte of the odd texts by one process that holds the whole model."""
    model = LanguageModelLoss(load_model(folder, dtype="float32", attn_implementation="sdpa"))
    prefix = load_tokenizer(folder).bos_token_id
    assert isinstance(prefix, int)
    values = {}
    for name, text in odd_texts().items():
        nll = score_documents(
            model, text.documents, prefix_token_id=prefix, max_length=32, tokens_per_batch=10_000
        )
        values[name] = bits_per_byte(float(nll.sum()), text.num_bytes)
    return values


@pytest.mark.parametrize("engine", ["compact", "masked"])
def test_unequal_shares_under_zero3_equal_one_process(trained: Path, engine: str) -> None:
    """That the ranks came to an end at all says that none of these texts makes one wait for the other."""
    run = run_dir(trained, Layout(3, engine), ODD_TEXTS)
    lines = measured_lines(run)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    exported = export_model(run, checkpoint="last").folder
    for line, folder in ((lines[0], trained.parent / "base"), (lines[-1], exported)):
        expected = one_process(trained, folder)
        found = {name: line["heldout_bits_per_byte"][name] for name in DOCUMENT_LENGTHS}
        assert found == pytest.approx(expected, rel=1e-6)
        assert found["of no token"] == 0
    assert lines[0]["heldout_bits_per_byte"] != lines[-1]["heldout_bits_per_byte"]


def test_without_measurement_the_last_checkpoint_is_the_best(trained: Path) -> None:
    run = run_dir(trained, Layout(2, "masked"), "never")
    assert export_model(run, checkpoint="best").step == STEPS
    measured = run_dir(trained, Layout(2, "masked"), "every-step")
    reader = open_checkpoint(measured / "checkpoints", "last")
    assert reader is not None
    own = [line["heldout_bits_per_byte"]["mlt_Latn"] for line in measured_lines(measured)]
    assert reader.state.best == {"step": own.index(min(own)), "bits_per_byte": min(own)}


def test_switched_off_where_it_is_needed(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match=r"heldout\.every_steps: null measures nothing, and a sweep"):
        sweep_runs(load_recipe(str(tiny_recipe), ["train.heldout.every_steps=null"]))
    with pytest.raises(UserError, match=r"train\.heldout\.every_steps: .* not 0"):
        load_recipe(str(tiny_recipe), ["train.heldout.every_steps=0"])
