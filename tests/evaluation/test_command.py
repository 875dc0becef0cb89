"""What a user may name on the command line, and what comes out of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lape_ds.errors import UserError
from lape_ds.evaluation.command import _each_once, _parts, evaluate_command
from lape_ds.evaluation.harness import Results
from lape_ds.evaluation.request import EvalRequest
from lape_ds.evaluation.serving import TasksFailed
from lape_ds.evaluation.subjects import named_models
from lape_ds.evaluation.suites import load_suite
from lape_ds.model.loading import fingerprint, load_model, load_tokenizer
from lape_ds.subnetwork.pack import Pack
from lape_ds.subnetwork.vectors import Vectors, neuron_vectors
from tests.processes import REPO

RECIPE = """\
name: tiny
output_dir: {output}
languages: {{target: mlt, identify: [eng, mlt, kat, deu]}}
model: {{path: {model}, dtype: float32}}
corpus: {{source: {{kind: cldr, records: 10}}}}
eval: {{limit: 2}}
"""


def measured(*targets: str, **options: Any) -> Results:
    return evaluate_command(EvalRequest(targets, **options))


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path, other_folder: Path) -> Path:
    """A recipe with two exported runs and one that is not exported yet."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(output=tmp_path / "runs", model=model_folder), encoding="utf-8")
    for name in ("random-seed0", "subnetwork", "unfinished"):
        run = tmp_path / "runs" / "train" / name
        run.mkdir(parents=True)
        shutil.copy(path, run / "recipe.yaml")
        if name != "unfinished":
            shutil.copytree(other_folder, run / "model")
    return path


def test_a_recipe_means_its_base_and_its_exported_runs(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = measured(str(recipe))
    assert list(results) == ["base", "subnetwork", "random-seed0"]  # the control stands last
    # The target and two more of those identified.
    assert {result.language for result in results["base"].values()} == {"mlt_Latn", "eng_Latn", "kat_Geor"}
    assert all(result.num_documents == 2 for result in results["base"].values())
    assert all(result.settings["dtype"] == "float32" for result in results["base"].values())
    shown = capsys.readouterr().out
    for text in ("quickstart suite", "base", "subnetwork", "random-seed0", "translation", "↓", "↑", "0.250"):
        assert text in shown
    written = tmp_path / "runs" / "eval" / "subnetwork"
    assert (written / "cldr_cloze_kat_Geor.json").is_file()
    assert (written / "samples" / "cldr_cloze_kat_Geor.jsonl").is_file()


def test_a_run_folder_means_its_base_and_itself(recipe: Path, tmp_path: Path):
    run = tmp_path / "runs" / "train" / "subnetwork"
    results = measured(str(run), languages=["mlt"], output_dir=tmp_path / "out", limit=1)
    assert list(results) == ["base", "subnetwork"]
    assert (tmp_path / "out" / "base" / "cldr_topic_mlt_Latn.json").is_file()


def test_the_same_model_is_measured_once_and_labels_differ(recipe: Path, tmp_path: Path, model_folder: Path):
    runs = tmp_path / "runs" / "train"
    again = tmp_path / "copy" / "tiny"
    shutil.copytree(model_folder, again)
    results = measured(
        str(runs / "subnetwork"),
        str(runs / "random-seed0"),
        str(model_folder),
        str(again),
        languages=["mlt"],
        limit=1,
    )
    assert list(results) == ["base", "subnetwork", "random-seed0", "tiny", "copy-tiny"]


def test_what_cannot_be_measured_is_refused(recipe: Path, tmp_path: Path, model_folder: Path):
    with pytest.raises(UserError, match=r"unfinished is not the folder of a training"):
        measured(str(tmp_path / "runs" / "train" / "unfinished"))
    with pytest.raises(UserError, match=r"--languages .* and --output"):
        measured(str(model_folder))
    with pytest.raises(UserError, match=r"no recipe .*nothing\.yaml"):
        measured("nothing.yaml")
    with pytest.raises(UserError, match=r"no config\.json"):
        measured(str(tmp_path), languages=["mlt"], output_dir=tmp_path / "out")
    # Not taken for an id of the hub: it is none, or its folder is here.
    for nowhere in ("runs/nope/train/x", "./nope", "tests/nope"):
        with pytest.raises(
            UserError, match=rf"^{nowhere}: neither a recipe nor a run, pack or model is there"
        ):
            measured(nowhere, languages=["mlt"], output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        measured(str(recipe), suites=["quikstart"])
    assert not (tmp_path / "out").exists()


def test_overrides_reach_the_recipe(recipe: Path):
    results = measured(str(recipe), overrides=["eval.limit=1", "languages.target=kat"])
    assert {result.language for result in results["base"].values()} == {"kat_Geor", "eng_Latn", "mlt_Latn"}
    assert all(result.num_documents == 1 for result in results["base"].values())


def test_settings_reach_a_run_and_are_refused_without_one(recipe: Path, tmp_path: Path, model_folder: Path):
    run = tmp_path / "runs" / "train" / "subnetwork"
    results = measured(str(run), overrides=["eval.limit=1"], languages=["mlt"])
    assert all(result.num_documents == 1 for result in results["base"].values())
    with pytest.raises(UserError, match=r"^eval\.limit=1 changes a recipe, and none is named"):
        measured(
            str(model_folder), overrides=["eval.limit=1"], languages=["mlt"], output_dir=tmp_path / "out"
        )


def test_several_suites_have_a_table_each_and_models_are_loaded_once(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    own = load_suite("quickstart").model_dump(mode="json", exclude_defaults=True)
    own |= {"name": "own", "tasks": {"named": own["tasks"]["topic"], "cloze": own["tasks"]["cloze"]}}
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps(own), encoding="utf-8")
    results = measured(str(recipe), suites=["quickstart", str(path)], languages=["mlt"], limit=1)
    assert len(results["base"]) == 4
    of_both = {name for name, one in results["base"].items() if one.suites == ["quickstart", "own"]}
    assert of_both == {"cldr_topic_mlt_Latn", "cldr_cloze_mlt_Latn"}
    captured = capsys.readouterr()
    assert (
        captured.out.index("quickstart suite")
        < captured.out.index("own suite")
        < captured.out.index("named ↑")
    )
    assert captured.err.count("evaluating ") == 3
    folder = tmp_path / "runs" / "eval"
    assert captured.out.splitlines()[-2:] == [
        f"results and samples: {folder}",
        f"what is significant: lape-ds compare {folder}/base {folder}/subnetwork {folder}/random-seed0",
    ]
    again = measured(str(recipe), suites=[str(path)], languages=["mlt"], limit=1)
    assert again["base"]["cldr_topic_mlt_Latn"].suites == ["quickstart", "own"]
    for change in ({"num_fewshot": 2}, {"filter": "another"}):
        other = own | {"tasks": {"named": own["tasks"]["named"] | change}}
        path.write_text(json.dumps(other), encoding="utf-8")
        with pytest.raises(
            UserError, match="suites quickstart and own measure cldr_topic_mlt_Latn in different ways"
        ):
            measured(str(recipe), suites=["quickstart", str(path)], languages=["mlt"], limit=1)


def test_labels_tell_models_apart(recipe: Path, tmp_path: Path, model_folder: Path):
    folders = []
    for name in ("a/x/tiny", "b/x/tiny", "c/tiny"):
        shutil.copytree(model_folder, tmp_path / name)
        folders.append(str(tmp_path / name))
    run = tmp_path / "runs" / "train" / "subnetwork"
    found = named_models([*folders, folders[0], f"{run}/model", str(run)], [], packs_dir=tmp_path)
    assert [source.label for source in found] == ["tiny", "x-tiny", "c-tiny", "subnetwork", "base"]


def test_two_runs_of_one_name_that_are_not_exported_are_two_models(
    recipe: Path, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = [tmp_path / name / "train" / "subnetwork" for name in ("a", "b")]
    for run in runs:
        run.mkdir(parents=True)
        shutil.copy(recipe, run / "recipe.yaml")

    def made(run: Path) -> Pack:
        neurons = torch.tensor([[0, 1]], dtype=torch.int32)
        vectors: Vectors = {0: {"up_proj": torch.full((1, 2), float(runs.index(run)))}}
        return Pack(neurons, vectors, vectors, "ab", str(model_folder), (), {})

    monkeypatch.setattr("lape_ds.evaluation.subjects.pack_of_run", made)
    base, *found = named_models([str(run) for run in runs], [], packs_dir=tmp_path / "packs")
    assert (base.label, base.pack) == ("base", None)
    assert [source.label for source in found] == ["subnetwork", "b-subnetwork"]
    values = [Pack.load(source.pack).new[0]["up_proj"][0, 0].item() for source in found if source.pack]
    assert values == [0.0, 1.0]


def test_a_recipe_means_its_runs_that_are_not_exported_too(
    recipe: Path,
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    runs = tmp_path / "runs" / "train"
    shutil.copytree(runs / "unfinished", runs / "lora")

    def made(run: Path) -> Pack:
        if run.name == "lora":
            raise UserError("it changes whole weight matrices")
        vectors: Vectors = {0: {"up_proj": torch.zeros(1, 2)}}
        neurons = torch.tensor([[0, 1]], dtype=torch.int32)
        return Pack(neurons, vectors, vectors, "ab", str(model_folder), (), {})

    monkeypatch.setattr("lape_ds.evaluation.subjects.pack_of_run", made)
    found = named_models([str(recipe)], [], packs_dir=tmp_path)
    assert [one.label for one in found] == ["base", "subnetwork", "unfinished", "random-seed0"]
    assert [one.pack is not None for one in found] == [False, False, True, False]
    told = "left out: lora, which is not exported: it changes whole weight matrices\n"
    assert capsys.readouterr().err == told


def test_a_pack_is_measured_on_the_revision_that_it_was_made_on(tmp_path: Path):
    vectors: Vectors = {0: {"up_proj": torch.zeros(1, 2)}}
    neurons = torch.tensor([[0, 1]], dtype=torch.int32)
    for revision in ("v1", None):
        path = tmp_path / "run" / "pack.safetensors"
        Pack(neurons, vectors, vectors, "ab", "org/model", (), {}, revision).save(path)
        found = named_models([str(path)], [], packs_dir=tmp_path)
        assert [(one.label, one.path, one.revision, one.pack) for one in found] == [
            ("base", "org/model", revision, None),
            ("run", "org/model", revision, path),
        ]


def test_a_language_pack_is_measured_as_the_exported_model(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
):
    neurons = torch.tensor([[0, 1], [0, 5], [1, 3]], dtype=torch.int32)
    model = load_model(model_folder, dtype="float32", attn_implementation="sdpa")
    base = neuron_vectors(model, neurons)
    new: Vectors = {
        layer: {part: 2 * values for part, values in parts.items()} for layer, parts in base.items()
    }
    pack = Pack(neurons, new, base, fingerprint(model_folder), str(model_folder), ("mlt_Latn",), {})
    path = tmp_path / "run" / "pack.safetensors"
    pack.save(path)
    pack.apply(model, base_fingerprint=fingerprint(model_folder))
    exported = tmp_path / "exported"
    model.save_pretrained(exported)
    load_tokenizer(model_folder).save_pretrained(exported)
    options = {"languages": ["mlt"], "output_dir": tmp_path / "out", "limit": 4}
    results = measured(str(path), str(exported), **options)
    assert list(results) == ["base", "run", "exported"]
    for name, packed in results["run"].items():
        assert packed.scores == results["exported"][name].scores
        assert packed.requests_sha256 == results["base"][name].requests_sha256
        assert packed.settings["model_fingerprint"] == results["base"][name].settings["model_fingerprint"]
        assert packed.settings["pack_fingerprint"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert results["run"] != results["base"]
    pack.revert(model)
    path.unlink()
    Pack(neurons, base, new, fingerprint(exported), str(model_folder), ("mlt_Latn",), {}).save(path)
    capsys.readouterr()
    with pytest.raises(TasksFailed, match=r"4 of 4 tasks failed \(cldr_bits_per_byte_mlt_Latn of run; "):
        measured(str(path), str(exported), **options)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, "of the model, not of each task"
    assert errors[0].startswith("error: run cannot be loaded: ")
    assert "the language pack is of another base model" in errors[0]


def test_a_suite_is_run_in_its_languages_and_what_is_left_out_is_told(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    suite = load_suite("quickstart").model_dump(mode="json", exclude_defaults=True)
    tasks = {title: suite["tasks"][title] for title in ("topic", "translation")}
    for languages, expected in (
        ("trained", ["mlt_Latn"]),
        ("untrained", ["eng_Latn", "kat_Geor", "deu_Latn"]),
        (["kat"], ["kat_Geor"]),
    ):
        path = tmp_path / "own.yaml"
        path.write_text(json.dumps({"name": "own", "languages": languages, "tasks": tasks}), encoding="utf-8")
        results = measured(str(recipe), suites=[str(path)], limit=1)
        assert [one.language for one in results["base"].values() if one.title == "topic"] == expected
        shown = capsys.readouterr().out
        told = "left out: translation (eng_Latn); why: lape-ds suites own --languages eng_Latn"
        assert (told in shown.splitlines()) == ("eng_Latn" in expected)


def own_suite(folder: Path, name: str, languages: str | list[str], tasks: dict[str, Any]) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, "languages": languages, "tasks": tasks}), encoding="utf-8")
    return str(path)


def test_what_has_nothing_to_run_is_left_out_and_the_rest_goes_on(
    recipe: Path, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
):
    topic = load_suite("quickstart").tasks["topic"].model_dump(mode="json", exclude_defaults=True)
    text = {"task": "heldout_bits_per_byte", "metric": "bits_per_byte", "direction": "lower"}
    english = own_suite(tmp_path, "english", ["eng"], {"topic": topic | {"languages": ["eng"]}})
    other = own_suite(tmp_path, "other", "untrained", {"topic": topic})
    with_text = own_suite(tmp_path, "with_text", "trained", {"text": text, "topic": topic})
    text_only = own_suite(tmp_path, "text_only", "trained", {"text": text})
    model: dict[str, Any] = {"output_dir": tmp_path / "out", "limit": 1}

    suites = [english, text_only, with_text]
    results = measured(str(model_folder), suites=suites, languages=["mlt"], **model)
    assert list(results["tiny"]) == ["cldr_topic_eng_Latn", "cldr_topic_mlt_Latn"]
    shown = capsys.readouterr().out
    assert "left out: suite text_only has no text to measure on: name a recipe" in shown
    assert "left out: text (mlt_Latn); why: there is no text to measure on: name a recipe" in shown
    # A suite with a list of its own needs no languages.
    assert list(measured(str(model_folder), suites=[english], **model)["tiny"]) == ["cldr_topic_eng_Latn"]
    both = ["languages.identify=[mlt,eng]", "languages.target=mlt", "train.languages=[mlt,eng]"]
    measured(str(recipe), overrides=both, suites=[english, other], limit=1)
    assert "left out: suite other is for untrained languages and there are none" in capsys.readouterr().out
    for refused, said in ((other, "is for untrained languages"), (text_only, "is for trained languages")):
        with pytest.raises(UserError, match=said):
            measured(str(model_folder), suites=[refused], **model)
    with pytest.raises(UserError, match="suite text_only has no text to measure on"):
        measured(str(model_folder), suites=[text_only], languages=["mlt"], **model)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "aya-expanse-8b", "mistral-nemo-12b"])
def test_the_papers_recipes_measure_the_language_english_and_the_others(name: str):
    asked = EvalRequest([str(REPO / "recipes" / f"{name}.yaml")])
    planned = _each_once(_parts(asked, asked.recipe()))
    assert {"mmlu", "heldout_bits_per_byte", "belebele", "flores_to_english"} <= {
        one.title for one in planned
    }
    assert {one.language for one in planned if one.title == "mmlu"} == {"eng_Latn"}
    assert len({one.language for one in planned if one.title == "heldout_bits_per_byte"}) == 12
