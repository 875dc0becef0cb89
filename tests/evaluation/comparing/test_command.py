"""`lape-ds compare` as it is called: what may be named, what it prints and writes, its exit codes; and models really measured."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lape_ds import cli
from lape_ds.errors import UserError
from lape_ds.evaluation.comparing.comparison import Comparison, compare
from lape_ds.evaluation.comparing.reading import result_folders
from lape_ds.evaluation.comparing.tables import markdown, show
from lape_ds.evaluation.harness import evaluate
from tests.evaluation.comparing.written import answers, write_task

RECIPE = """\
name: tiny
output_dir: {output}
languages: {{target: mlt, identify: [eng, mlt, kat, deu]}}
model: {{path: {output}/base-model, dtype: float32}}
corpus: {{source: {{kind: cldr, records: 10}}}}
"""


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["lape-ds", "compare", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def write_model(folder: Path, *, right: float = 0.5, better: bool = False) -> None:
    """Two languages of one task, one of another, and one that cannot be resampled."""
    for title, language in (
        ("topic", "mlt_Latn"),
        ("topic", "kat_Geor"),
        ("a_much_longer_name_of_a_task", "mlt_Latn"),
    ):
        values = answers(80, right=right, seed=len(title))
        values = [1.0 if better and language == "mlt_Latn" and n % 3 else v for n, v in enumerate(values)]
        write_task(folder, values, title=title, language=language)
    write_task(
        folder,
        [(f"kelb {n}", "kelb") for n in range(12)],
        title="flores",
        metric="chrf++",
        random_baseline=None,
    )
    write_task(folder, [(1, 1)] * 20, title="mela", metric="mcc", random_baseline=0.0)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder of `lape-ds eval` with a base, a run and a control."""
    for label, better in (("random-seed0", False), ("subnetwork", True), ("base", False)):
        write_model(tmp_path / "eval" / label, better=better)
    (tmp_path / "eval" / "errors").mkdir()
    return tmp_path / "eval"


@pytest.fixture
def recipe(output: Path) -> Path:
    path = output.parent / "tiny.yaml"
    path.write_text(RECIPE.format(output=output.parent), encoding="utf-8")
    for name in ("subnetwork", "not-measured"):
        run = output.parent / "train" / name
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def test_what_may_be_named(recipe: Path, output: Path, monkeypatch: pytest.MonkeyPatch):
    run = str(output.parent / "train" / "subnetwork")
    three = ["base", "subnetwork", "random-seed0"]
    assert list(result_folders([str(output)])) == three
    assert list(result_folders([str(recipe)])) == three
    assert list(result_folders([run])) == ["base", "subnetwork"]
    assert list(result_folders([run, str(output / "random-seed0")])) == three
    assert list(result_folders([str(output / name) for name in ("random-seed0", "base")])) == [
        "random-seed0",
        "base",
    ]
    monkeypatch.chdir(output)
    assert result_folders(["base", "./subnetwork", "subnetwork/"]) == {
        "base": output / "base",
        "subnetwork": output / "subnetwork",
    }


def test_runs_packs_and_models_have_the_labels_of_the_evaluation(recipe: Path, output: Path, tmp_path: Path):
    run, other = output.parent / "train" / "subnetwork", tmp_path / "b" / "train" / "subnetwork"
    other.mkdir(parents=True)
    text = recipe.read_text(encoding="utf-8")
    moved = text.replace(f"output_dir: {tmp_path}", f"output_dir: {tmp_path / 'b'}")
    (other / "recipe.yaml").write_text(moved, encoding="utf-8")
    for label in ("b-subnetwork", "mine", "Qwen3"):
        write_model(output / label)
    pack = str(tmp_path / "mine.safetensors")
    assert list(result_folders([str(run), str(other), pack, "Qwen/Qwen3"])) == [
        "base", "subnetwork", "b-subnetwork", "mine", "Qwen3",
    ]  # fmt: skip
    with pytest.raises(
        UserError, match=r"mine\.safetensors does not say where its results are: name the folder"
    ):
        result_folders([pack])
    with pytest.raises(UserError, match=r"no results in .*eval/gone \(.*eval has base, .*mine"):
        result_folders([str(run), "org/gone"])


def test_two_folders_of_one_name_get_longer_ones(output: Path, tmp_path: Path):
    write_model(tmp_path / "again" / "base")
    assert list(result_folders([str(output / "base"), str(tmp_path / "again" / "base")])) == [
        "base",
        "again-base",
    ]


def test_what_has_no_results_is_refused(recipe: Path, output: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"finds base: name a base and another"):
        result_folders([str(output / "base")])
    with pytest.raises(
        UserError,
        match=r"no results in .*eval/not-measured \(.*eval has base, subnetwork, random-seed0\): "
        r"run `lape-ds eval .*not-measured`",
    ):
        result_folders([str(output.parent / "train" / "not-measured")])
    with pytest.raises(UserError, match=r"nowhere: no results in nowhere; name a folder of `lape-ds eval`"):
        result_folders([str(output), "nowhere"])
    with pytest.raises(UserError, match=r"no recipe .*nothing\.yaml"):
        result_folders(["nothing.yaml"])


def test_the_command_prints_and_writes(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("COLUMNS", raising=False)
    files = {name: tmp_path / f"compared.{name}" for name in ("markdown", "csv", "json")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert call(monkeypatch, str(output), *options) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 90
    for text in (
        "topic ↑ mlt_Latn",
        "acc, n 80, chance 0.25",
        "p <0.0001 better",
        "p 1.0000 –",
        "not tested",
    ):
        assert text in shown
    for text in (
        "subnetwork: 2 better, 2 no difference shown, 1 not tested",
        "mela mlt_Latn",
        "Holm",
        "McNemar",
        "±",
    ):
        assert text in " ".join(shown.split())
    assert "mean accuracy ↑ all\n" not in shown  # the line goes on
    assert "over 3 tasks" in shown

    record = json.loads(files["json"].read_text(encoding="utf-8"))
    assert list(record["models"]) == ["base", "subnetwork", "random-seed0"]
    topic = next(row for row in record["tasks"] if row["name"] == "topic_mlt_Latn")
    one = topic["models"]["subnetwork"]
    assert one["score"] - topic["base_score"] == pytest.approx(one["difference"])
    assert one["interval"] == pytest.approx(
        [one["difference"] - one["half_width"], one["difference"] + one["half_width"]]
    )
    assert (one["verdict"], one["documents_lost"], topic["unit"]) == ("better", 0, "share of documents")
    assert topic["measured_with"]["versions"]["lm-eval"] == "0.4.13"
    assert record["method"]["num_resamples"] == 10_000

    lines = list(csv.DictReader(io.StringIO(files["csv"].read_text(encoding="utf-8"))))
    assert len(lines) == 2 * (len(record["tasks"]) + len(record["means"]))
    found = next(line for line in lines if line["name"] == "topic_mlt_Latn" and line["model"] == "subnetwork")
    assert float(found["difference"]) == one["difference"]
    assert (found["kind"], found["num_tasks"], found["verdict"]) == ("task", "1", "better")

    text = files["markdown"].read_text(encoding="utf-8")
    assert f"`lape-ds compare {output} --markdown" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {13}
    assert any(row.startswith("| topic | kat_Geor | acc ↑ | 80 | 0.25 |") for row in rows)


def test_a_mistake_is_one_line_and_exit_code_2(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    samples = output / "subnetwork" / "samples" / "topic_mlt_Latn.jsonl"
    samples.write_bytes(samples.read_bytes()[:-9])
    assert call(monkeypatch, str(output)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert call(monkeypatch) == 2


def rendered(comparison: Comparison, width: int) -> list[str]:
    out = io.StringIO()
    show(comparison, Console(file=out, width=width, force_terminal=True, color_system=None))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 90, 140])
def test_no_number_is_cut_off_on_any_terminal(output: Path, width: int):
    for label in ("full", "lora"):
        write_model(output / label, right=0.6)
    comparison = compare(result_folders([str(output)]), num_resamples=99)
    lines = rendered(comparison, width)
    assert max(map(len, lines)) <= width
    shown = "\n".join(lines)
    assert "…" not in shown
    for row in comparison.tasks:
        assert shown.count(f"{row.title} ↑ {row.language}") == shown.count("task, language") // 2
    for one in comparison.tasks[-1].models.values():
        half = "" if one.estimate.half_width is None else f" ±{one.estimate.half_width:.4f}"
        assert f"{one.estimate.difference:+.4f}{half}" in shown


def test_markdown_is_not_broken_by_names(output: Path):
    folders = {label.replace("sub", "a|b"): folder for label, folder in result_folders([str(output)]).items()}
    rows = markdown(compare(folders, num_resamples=99), command="lape-ds compare").splitlines()
    assert {row.replace("\\|", "").count("|") for row in rows if row.startswith("|")} == {13}


def test_torch_is_not_needed(output: Path):
    """Nor the harness: the command starts at once."""
    import subprocess

    code = (
        "import sys\n"
        "from lape_ds.evaluation.comparing.command import compare_command\n"
        f"compare_command([{str(output)!r}])\n"
        "assert not {'torch', 'lm_eval', 'transformers', 'datasets', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, stdout=subprocess.DEVNULL)


def test_models_that_the_harness_has_measured(model_folder: Path, other_folder: Path, tmp_path: Path):
    models = {"base": model_folder, "other": other_folder, "same": model_folder}
    results = evaluate(models, suite="quickstart", languages=["mlt"], output_dir=tmp_path, limit=24)
    found = compare(result_folders([str(tmp_path)]), num_resamples=2000)
    assert [row.name for row in found.tasks] == sorted(results["base"])
    for row in found.tasks:
        for label, one in row.models.items():
            scores = [results[model][row.name].scores[row.metric].value for model in ("base", label)]
            assert one.estimate.base == pytest.approx(scores[0], rel=1e-9)
            assert one.estimate.value == pytest.approx(scores[1], rel=1e-9)
    for row in [*found.tasks, *found.means]:
        same = row.models["same"]
        assert (same.estimate.difference, same.estimate.p, same.p_holm) == (0.0, 1.0, 1.0)
        assert same.verdict == "no difference shown"
    bits = next(row for row in found.tasks if row.title == "bits_per_byte").models["other"]
    assert bits.estimate.half_width
    assert [(row.name, len(row.tasks)) for row in found.means] == [("mean accuracy, quickstart, mlt_Latn", 3)]
    show(found, Console(file=io.StringIO()))

    evaluate({"base": model_folder}, suite="quickstart", languages=["mlt"], output_dir=tmp_path, limit=12)
    with pytest.raises(UserError, match=r"of base and other: limit 12 against 24 \(and"):
        compare(result_folders([str(tmp_path)]))
