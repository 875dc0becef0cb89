"""The task of held-out text: the documents and the number of the training itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from lm_eval.evaluator import evaluate as run_harness

from lape_ds.corpora.cldr import sample_records
from lape_ds.corpora.hub import HubUnreachable
from lape_ds.corpora.splitting import text_keys
from lape_ds.errors import UserError
from lape_ds.evaluation.heldout import documents, with_heldout
from lape_ds.evaluation.lm import ModelSettings, ModelSource, quiet_harness
from lape_ds.evaluation.prefetch import _ask, _Needs
from lape_ds.evaluation.serving import ServedModel
from lape_ds.evaluation.suites import HELDOUT_TASK, PlannedTask, Suite, load_suite, plan
from lape_ds.evaluation.tasks import build_task
from lape_ds.languages import find_language
from lape_ds.model.loading import fingerprint, load_tokenizer
from lape_ds.recipe import Recipe, load_recipe
from lape_ds.training.export import export_model
from lape_ds.training.metrics import read_metrics
from tests.processes import run_ranks

SUITE = Suite.model_validate(
    {
        "name": "own",
        "tasks": {
            "heldout": {"task": HELDOUT_TASK, "metric": "bits_per_byte", "direction": "lower"},
            "topic": {
                "task": "cldr_topic",
                "metadata": {"language": "{code}"},
                "metric": "acc",
                "direction": "higher",
            },
        },
    }
)
LANGUAGES = ["mlt_Latn", "eng_Latn", "kat_Geor"]  # trained, only measured, measured and replayed
SETTINGS = [
    "train.run_name=heldout-task",
    "train.max_steps=3",
    "train.block_length=64",  # the model's whole context: the evaluation's window
    "train.heldout.languages=[en,ka]",
]


def heldout_tasks(*languages: str) -> list[PlannedTask]:
    return [one for one in plan(SUITE, languages) if one.harness_task == HELDOUT_TASK]


def recipe_of(path: Path, *overrides: str) -> Recipe:
    return load_recipe(str(path), [*SETTINGS, *overrides])


def written(folder: Path, code: str) -> list[str]:
    with (folder / "heldout" / f"{code}.jsonl").open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line)["text"] for line in lines]


def test_the_task_gives_the_trainings_own_number(tiny_recipe: Path, tmp_path: Path):
    run_ranks("lape_ds.training.main", [str(tiny_recipe), *SETTINGS], world_size=1)
    recipe = recipe_of(tiny_recipe)
    lines = read_metrics(recipe.run_dir / "metrics.jsonl")
    measured = {
        line["step"]: line["heldout_bits_per_byte"] for line in lines if "heldout_bits_per_byte" in line
    }
    planned = with_heldout(heldout_tasks(*LANGUAGES), recipe, tmp_path)
    exported = export_model(recipe.run_dir, checkpoint="last").folder
    with quiet_harness():
        tasks: dict[str, Any] = {one.name: build_task(one) for one in planned}
        for step, folder in ((0, tiny_recipe.parent / "base"), (3, exported)):
            with ServedModel() as model:
                source = ModelSource("tiny", str(folder))
                model.load(source, ModelSettings(batch_size=4), weights=fingerprint(folder))
                found: Any = run_harness(model, {"tasks": tasks}, bootstrap_iters=0)
            values = {one.language: found["results"][one.name]["bits_per_byte,none"] for one in planned}
            assert values == pytest.approx(measured[step], rel=1e-6)
    assert list(values) == LANGUAGES
    tokenizer = load_tokenizer(exported)
    lengths = [
        len(tokenizer(text, add_special_tokens=False).input_ids) for text in written(tmp_path, LANGUAGES[0])
    ]
    assert max(lengths) > 64 > min(lengths), "documents of one and of several windows"


def test_the_documents_are_those_held_out_and_bounded(tiny_recipe: Path, tmp_path: Path):
    """The split by another way: every record of the source whose text hashes into the held-out share, in order."""
    recipe = recipe_of(tiny_recipe)
    with_heldout(heldout_tasks("kat"), recipe, tmp_path)
    texts = written(tmp_path, "kat_Geor")
    records = [record.text for record in sample_records(find_language("kat"), count=300, seed=0)]
    heldout = list(
        dict.fromkeys(text for text in records if text_keys(text).is_heldout(recipe.corpus.heldout_share))
    )
    assert texts == heldout[: len(texts)]
    assert 0 < len(texts) < len(heldout)  # `tokens_per_language` is less than all of them
    about = json.loads((tmp_path / "heldout" / "kat_Geor.source.json").read_text())
    assert about["documents"] == len(texts)
    assert about["bytes"] == sum(len(text.encode()) for text in texts)


def test_other_tasks_and_given_paths_are_left_as_they_are(tiny_recipe: Path, tmp_path: Path):
    planned = plan(SUITE, ["mlt"])
    given = with_heldout(planned, recipe_of(tiny_recipe), tmp_path)
    assert given[1] == planned[1]
    assert given[0].metadata == {"path": str(tmp_path / "heldout" / "mlt_Latn.jsonl")}
    assert with_heldout(given, None, tmp_path) == given


def files_recipe(tiny_recipe: Path, folder: Path) -> Recipe:
    """Welsh and Faroese from files below `folder`."""
    source = f"{{kind: files, path: '{folder}/{{iso639_3}}.jsonl'}}"
    return recipe_of(
        tiny_recipe, f"corpus.per_language={{cy: {source}, fo: {source}}}", f"output_dir={folder}/out"
    )


def write_lines(path: Path, count: int, *, word: str = "gair") -> list[str]:
    """Documents with all that a file, JSON or a line could lose."""
    texts = [f"{word} {number}\r\n\u2028 ħ🙂 \x85{{{number * 7919}}}\n " for number in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return texts


def test_the_file_is_made_anew_only_when_the_text_is_another(tiny_recipe: Path, tmp_path: Path):
    recipe = files_recipe(tiny_recipe, tmp_path)
    texts = write_lines(tmp_path / "cym.jsonl", 200)
    (planned,) = with_heldout(heldout_tasks("cym"), recipe, tmp_path)
    first = written(tmp_path, "cym_Latn")
    assert first
    assert set(first) < set(texts)
    assert [row["text"] for row in documents(**planned.metadata)["test"]] == first  # type: ignore[arg-type]
    path = tmp_path / "heldout" / "cym_Latn.jsonl"
    stamp = path.stat().st_mtime_ns
    with_heldout(heldout_tasks("cym"), recipe, tmp_path)
    assert path.stat().st_mtime_ns == stamp
    path.write_text(path.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")  # somebody's hand
    with_heldout(heldout_tasks("cym"), recipe, tmp_path)
    assert written(tmp_path, "cym_Latn") == first
    write_lines(tmp_path / "cym.jsonl", 200, word="iaith")
    with_heldout(heldout_tasks("cym"), recipe, tmp_path)
    second = written(tmp_path, "cym_Latn")
    assert second
    assert all(text.startswith("iaith") for text in second)


def test_a_language_without_text_is_left_out_with_the_reason(
    tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    recipe = files_recipe(tiny_recipe, tmp_path)
    with caplog.at_level(logging.WARNING):
        given = with_heldout(heldout_tasks("fao", "mlt"), recipe, tmp_path)
    assert [one.language for one in given] == ["mlt_Latn"]
    assert f"of fao_Latn is left out: corpus.source.path: no such file or folder: {tmp_path}" in caplog.text


def test_text_that_cannot_be_had_fails_its_own_task(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A wrong path for all languages, a gated data set, a hub out of reach, a disk that takes nothing."""
    source = f"{{kind: files, path: '{tmp_path}/nowhere.jsonl'}}"
    wrong = recipe_of(tiny_recipe, f"corpus.per_language={{cy: {source}}}")
    planned = [*heldout_tasks("cym"), *plan(SUITE, ["mlt"])]
    given = with_heldout(planned, wrong, tmp_path)
    assert len(given) == len(planned)
    with pytest.raises(UserError, match=r"^corpus\.source\.path: no such file or folder"), quiet_harness():
        build_task(given[0])
    (tmp_path / "heldout").rename(tmp_path / "moved")
    (tmp_path / "heldout").touch()
    for error in (None, UserError("is gated"), HubUnreachable("cannot reach hub")):
        if error is not None:
            monkeypatch.setattr("lape_ds.evaluation.heldout.heldout_text", Mock(side_effect=error))
        (one,) = with_heldout(heldout_tasks("mlt"), recipe_of(tiny_recipe), tmp_path)
        with pytest.raises(UserError, match=str(error or "^cannot write .*heldout")), quiet_harness():
            build_task(one)
        (missing,) = [one.fault for one in _ask(_Needs({}, [one], recipe_of(tiny_recipe), tmp_path))]
        assert str(error or "cannot write") in str(missing)
    assert "left out" not in caplog.text


def test_models_alone_are_told_how_to_give_text(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"'heldout' has no text .*metadata: \{path: \"text/\{code\}\.jsonl\"\}"
    ):
        with_heldout(heldout_tasks("mlt"), None, tmp_path)
    with pytest.raises(UserError, match=r"has no text: .*metadata: \{path"), quiet_harness():
        build_task(heldout_tasks("mlt")[0])


def test_a_suite_may_name_any_file(tmp_path: Path):
    write_lines(tmp_path / "mlt_Latn.jsonl", 3)
    suite = tmp_path / "own.yaml"
    suite.write_text(
        f"name: own\ntasks:\n  text:\n    task: {HELDOUT_TASK}\n    metadata: {{path: '{tmp_path}/{{code}}.jsonl'}}\n"
        "    metric: bits_per_byte\n    direction: lower\n"
    )
    (one,) = plan(load_suite(suite), ["mlt"])
    with quiet_harness():
        assert len(list(build_task(one).eval_docs)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no such file .*a\.jsonl"),
        ("{}\n", r"a\.jsonl line 1: has no column 'text'"),
        ('{"text": "ok"}\n{"text": \n', r"a\.jsonl line 2: broken JSON"),
        ('{"text": " "}\n', "holds no document"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str | None, message: str):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        documents(path=str(path))
