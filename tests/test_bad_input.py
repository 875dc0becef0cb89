"""What a user may get wrong: each is refused in one line with exit code 2, and what was there before stays as it was.

A small project is identified and trained once; every test breaks one thing in a copy of it and runs a stage again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import GatedRepoError

from lape_ds import cli
from lape_ds.corpora.cldr import sample_records
from lape_ds.languages import find_language
from lape_ds.model import loading
from lape_ds.neurons.artefact import load_artefact, save_artefact
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import load_recipe
from lape_ds.training import main as training
from tests.processes import REPO

RECIPE = """
name: project
output_dir: out
languages: {target: mt, identify: [mt, en]}
model: {path: base, dtype: float32}
corpus:
  source: {kind: files, path: "text/{iso639_3}.jsonl"}
  cache_dir: packed
  heldout_share: 0.2
identify: {tokens_per_language: 1500, context_length: 32, batch_size: 8, top_rate: 0.5, filter_rate: 0.5}
train:
  neurons: neurons.safetensors
  tokens: 1500
  block_length: 32
  max_steps: 1
  heldout: {tokens_per_language: 100}
launch: {num_ranks: 1}
"""
NUM_DOCUMENTS = 120

Run = Callable[..., tuple[int | str | None, str]]


@pytest.fixture(scope="module")
def finished(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with all its stages done; every path in its recipe is relative to it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_recipe.parent / "base", folder / "base")
    shutil.copy(tiny_recipe.parent / "neurons.safetensors", folder)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "text").mkdir()
    for name in ("mlt", "eng"):
        records = islice(sample_records(find_language(name), count=NUM_DOCUMENTS, seed=1), NUM_DOCUMENTS)
        lines = [json.dumps({"text": record.text}, ensure_ascii=False) for record in records]
        (folder / "text" / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in (["-m", "lape_ds.cli", "identify"], ["-m", "lape_ds.training.main"]):
        done = subprocess.run(
            [sys.executable, *command, "recipe.yaml"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, which is now the working folder; files keep their time of change."""
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a stage in this process: its exit code and its stderr, without the lines that tell of packing done."""

    def run(stage: str, *arguments: str) -> tuple[int | str | None, str]:
        capfd.readouterr()
        if stage == "train":  # what every rank runs: refused before there is a process group
            code = training.main(["recipe.yaml", *arguments])
        else:
            monkeypatch.setattr(sys, "argv", ["lape-ds", stage, "recipe.yaml", *arguments])
            with pytest.raises(SystemExit) as caught:
                cli.main()
            code = caught.value.code
        lines = capfd.readouterr().err.splitlines(keepends=True)
        return code, "".join(line for line in lines if not line.startswith("Packing "))

    return run


def contents(folder: Path) -> dict[Path, bytes]:
    """Of all files but those that say who is at work in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path: path.read_bytes() for path in files}


def assert_refused(result: tuple[int | str | None, str], *parts: str) -> None:
    """One line with all `parts`, in this order."""
    code, err = result
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    place = 0
    for part in parts:
        assert part in err[place:], f"{part!r} is not in, or not in order: {err}"
        place = err.index(part, place) + len(part)


def text_missing(text: Path) -> None:
    text.unlink()


def text_empty(text: Path) -> None:
    text.write_bytes(b"")


def text_blank(text: Path) -> None:
    text.write_bytes(b"\n\n")


def text_not_utf8(text: Path) -> None:
    lines = text.read_bytes().splitlines()
    lines[16] = '{"text": "Ħal Għaxaq, café"}'.encode("cp1252", errors="replace")
    text.write_bytes(b"\n".join(lines))


def text_broken(text: Path) -> None:
    lines = text.read_text(encoding="utf-8").splitlines()
    lines[16] = lines[16][: len(lines[16]) // 2]
    text.write_text("\n".join(lines), encoding="utf-8")


def text_shrunk(text: Path) -> None:
    text.write_text("\n".join(text.read_text(encoding="utf-8").splitlines()[:20]), encoding="utf-8")


TEXT = str(Path("text") / "mlt.jsonl")


@pytest.mark.parametrize("stage", ["corpus", "identify", "train"])
@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (text_missing, ["corpus.source.path", "no file or folder", TEXT, "mlt_Latn", "recipe.yaml:7"]),
        (text_empty, ["corpus.source", TEXT, "is empty", "no text of mlt_Latn"]),
        (text_blank, ["corpus.source", TEXT, "is empty", "no text of mlt_Latn"]),
        (text_not_utf8, [TEXT, "line 17", "is not UTF-8", "convert the file"]),
        (text_broken, [TEXT, "line 17", "broken JSON", "mend it, or set corpus.on_bad_line=skip"]),
        (text_shrunk, ["tokens_", "1,500 tokens asked of mlt_Latn", "only", "=all to take all there is"]),
    ],
)
def test_text_that_cannot_be_used(
    project: Path, run: Run, stage: str, spoil: Callable[[Path], None], parts: list[str]
) -> None:
    spoil(project / TEXT)
    before = contents(project)
    if spoil is text_shrunk and stage == "train":
        parts = ["train.tokens", *parts[1:]]
    assert_refused(run(stage), *parts)
    assert before.items() <= contents(project).items()


@pytest.mark.parametrize("stage", ["pretrain", "corpus", "identify", "train"])
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["languages.target=Maltees"],
            ["languages.target", "unknown language 'Maltees'", "did you mean Maltese (mlt_Latn)"],
        ),
        (
            ["languages.identify=[mt, en, xx]"],
            ["languages.identify", "unknown language 'xx'"],
        ),
        (
            ["train.optimizer.learning_rat=1e-3"],
            ["train.optimizer.learning_rat", "unknown key", "did you mean train.optimizer.learning_rate?"],
        ),
        (["train.max_step=3"], ["train.max_step", "unknown key", "did you mean train.max_steps?"]),
    ],
)
def test_recipe_that_is_wrong(
    project: Path, run: Run, stage: str, overrides: list[str], parts: list[str]
) -> None:
    before = contents(project)
    assert_refused(run(stage, *overrides), *parts, f"override '{overrides[0]}'")
    assert contents(project) == before


def test_misspelt_key_is_named_with_its_line(project: Path, run: Run) -> None:
    recipe = project / "recipe.yaml"
    recipe.write_text(RECIPE.replace("cache_dir", "cash_dir"), encoding="utf-8")
    before = contents(project)
    parts = ["corpus.cash_dir: unknown key", "corpus.cache_dir", "allowed here", "(recipe.yaml:8)"]
    assert_refused(run("identify"), *parts)
    assert contents(project) == before


@pytest.mark.parametrize("stage", ["identify", "train"])
def test_budget_larger_than_the_corpus_leaves_nothing_behind(project: Path, run: Run, stage: str) -> None:
    """In a fresh folder: the refused recipe must not be what the mended one is measured by."""
    key = {"identify": "identify.tokens_per_language", "train": "train.tokens"}[stage]
    result = run(stage, "output_dir=fresh", f"{key}=1_000_000")
    assert_refused(result, f"{key}: 1,000,000 tokens asked of mlt_Latn", "only", f"set {key}=all")
    assert not (project / "fresh").exists()
    if stage == "identify":
        assert run(stage, "output_dir=fresh", f"{key}=all")[0] == 0


def test_nan_in_counts(project: Path, run: Run) -> None:
    path = Path("out") / "identify" / "counts" / "mlt_Latn.safetensors"
    tensors, metadata = load_artefact(path, kind="activation counts", schema_version=1)
    tensors["active"] = tensors["active"].float()
    tensors["active"][3, 1, 7] = torch.nan
    rest = {key: value for key, value in metadata.items() if key not in ("kind", "schema_version")}
    save_artefact(path, tensors, kind="activation counts", schema_version=1, metadata=rest)
    before = contents(project)
    assert_refused(
        run("identify"), str(path), "counts of mlt_Latn: active contains NaN", "delete", "lape-ds identify"
    )
    assert contents(project) == before


def spoil_neurons_model(found: NeuronSet) -> NeuronSet:
    return replace(found, model_fingerprint="0" * 64, model_id="another/model")


def spoil_neurons_shape(found: NeuronSet) -> NeuronSet:
    return replace(found, neurons_per_layer=11_008, model_id="another/model")


def spoil_neurons_target(found: NeuronSet) -> NeuronSet:
    return replace(found, indices={"eng_Latn": found.neurons("eng_Latn")})


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (
            spoil_neurons_model,
            ["neurons.safetensors", "another model", "0" * 16, "another/model", "run `lape-ds identify`"],
        ),
        (
            spoil_neurons_shape,
            ["neurons.safetensors", "another model", "3 layers × 11008", "3 × 47", "run `lape-ds identify`"],
        ),
        (
            spoil_neurons_target,
            ["neurons.safetensors", "no language mlt_Latn; it has eng_Latn", "`languages.identify`"],
        ),
    ],
)
@pytest.mark.parametrize("method", ["subnetwork", "random"])
def test_neurons_that_do_not_fit(
    project: Path, run: Run, method: str, spoil: Callable[[NeuronSet], NeuronSet], parts: list[str]
) -> None:
    path = Path("neurons.safetensors")
    spoil(NeuronSet.load(path)).save(path)
    before = contents(project)
    assert_refused(run("train", f"train.method={method}"), *parts)
    assert contents(project) == before


def test_no_neurons_yet(project: Path, run: Run) -> None:
    before = contents(project)
    result = run("train", "train.neurons=null", "output_dir=fresh")
    assert_refused(result, "no neuron set at", "run `lape-ds identify`", "train.neurons")
    assert contents(project) == before


@pytest.mark.parametrize(
    ("stage", "override", "place"),
    [
        ("identify", "identify.context_length=16", "identify"),
        ("identify", "corpus.heldout_share=0.3", "identify"),
        ("train", "train.optimizer.learning_rate=1.0", "train/subnetwork"),
        ("train", "seed=7", "train/subnetwork"),
    ],
)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_output_folder_of_another_recipe(
    project: Path, run: Run, stage: str, override: str, place: str, resume: str
) -> None:
    before = contents(project)
    key, _, value = override.partition("=")
    result = run(stage, override, f"train.resume={resume}")
    parts = [f"out/{place} holds output of another recipe", f"{key} is {value} now", "set another output_dir"]
    assert_refused(result, *parts)
    assert contents(project) == before


def test_starting_over_deletes_nothing_that_cannot_be_made_again(project: Path, run: Run) -> None:
    """`resume: never` replaces the run, but only when the new one can begin."""
    text_broken(project / TEXT)
    before = contents(project)
    assert_refused(run("train", "train.resume=never"), TEXT, "line 17")
    assert before.items() <= contents(project).items()


@pytest.mark.parametrize("stage", ["corpus", "identify", "train"])
def test_gated_model_without_a_token(
    project: Path, run: Run, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "https://huggingface.co/api/models/meta-llama/Llama-3.1-8B/revision/main"
    message = f"401 Client Error.\n\nCannot access gated repo for url {url}."  # the hub's own words
    gated = GatedRepoError(message, response=Mock(headers={}, status_code=401))
    monkeypatch.setattr(loading, "snapshot_download", Mock(side_effect=gated))
    before = contents(project)
    assert_refused(
        run(stage, "model.path=meta-llama/Llama-3.1-8B", "output_dir=fresh"),
        "model.path=meta-llama/Llama-3.1-8B: gated",
        "accept its terms at https://huggingface.co/meta-llama/Llama-3.1-8B",
        "`hf auth login` or set HF_TOKEN",
    )
    assert contents(project) == before


@pytest.mark.parametrize("stage", ["corpus", "identify", "train"])
def test_hub_model_while_offline(
    project: Path, run: Run, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as the variable does at start
    before = contents(project)
    assert_refused(
        run(stage, "model.path=nobody/has-this-model", "output_dir=fresh"),
        "model.path=nobody/has-this-model: not a folder here, not in the hub's cache",
        "HF_HUB_OFFLINE",
        "set model.path to a folder",
    )
    assert contents(project) == before


def test_refusal_of_a_rank_is_one_line_too(project: Path) -> None:
    """Through the launcher on two ranks, which both see the mistake, and which has nothing to add."""
    before = contents(project)
    command = [str(REPO / "launch" / "train.sh"), "recipe.yaml", "launch.num_ranks=2", "train.max_steps=3"]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert_refused((done.returncode, done.stderr), "out/train/subnetwork holds output of another recipe")
    assert done.stdout == ""
    assert contents(project) == before


def test_the_project_itself_is_sound(project: Path, run: Run) -> None:
    """Without a mistake nothing is refused: the tests above fail for what they break, not for what they start from."""
    assert run("identify")[0] == 0
    recipe = load_recipe("recipe.yaml")
    found = NeuronSet.load(recipe.identify_dir / "neurons.safetensors")
    assert set(found.languages) == {"mlt_Latn", "eng_Latn"}
    assert (recipe.run_dir / "checkpoints" / "step-00000001" / "state.json").exists()
