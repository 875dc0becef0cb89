"""The harness's scores against log-likelihoods computed by hand; resuming; what a user gets wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask, Task
from transformers import AutoModelForCausalLM, AutoTokenizer

from lape_ds.corpora.streams import Document
from lape_ds.errors import UserError
from lape_ds.evaluation import harness
from lape_ds.evaluation.cldr_documents import bits_per_byte, topic
from lape_ds.evaluation.harness import Results, evaluate
from lape_ds.evaluation.lm import ModelSettings, ModelSource, quiet_harness
from lape_ds.evaluation.results import TaskResult, read_result, rewrite_result
from lape_ds.evaluation.serving import ServedModel, TasksFailed
from lape_ds.evaluation.suites import PlannedTask, Suite, load_suite, plan
from lape_ds.evaluation.tasks import _settle, build_task
from lape_ds.model.loading import fingerprint
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.model.scoring import score_documents
from tests.evaluation.conftest import MAX_LENGTH, save_model


def part(*titles: str) -> Suite:
    """The quickstart suite with only these tasks."""
    suite = load_suite("quickstart")
    return suite.model_copy(update={"tasks": {title: suite.tasks[title] for title in titles}})


def measured(folder: Path, output_dir: Path, *titles: str, **settings: Any) -> dict[str, TaskResult]:
    options = {"languages": ["mlt"], "limit": 6, "output_dir": output_dir, "suite": part(*titles)} | settings
    return evaluate({"tiny": folder}, **options)["tiny"]


def asked(task: Callable[..., Any]) -> list[dict[str, Any]]:
    """The documents that `measured` asks."""
    return list(task(language="mlt", num_documents=128)["test"])[:6]


def log_probabilities(folder: Path, tokens: list[int]) -> torch.Tensor:
    """float64 `[len(tokens) - 1, vocabulary]`: of what follows each token but the last."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        return model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)


def by_hand(folder: Path, context: list[int], continuation: list[int]) -> float:
    """Log-likelihood in nats of a continuation, one row, float64."""
    scores = log_probabilities(folder, context + continuation)[-len(continuation) :]
    return sum(float(row[token]) for row, token in zip(scores, continuation, strict=True))


def test_every_task_of_the_suite_builds_quietly(capfd: pytest.CaptureFixture[str]):
    planned = plan(load_suite("quickstart"), ["mlt", "eng"])
    with quiet_harness():
        tasks = [build_task(one) for one in planned]
    assert [task.task_name for task in tasks] == [one.name for one in planned]
    assert [len(task.eval_docs) for task in tasks] == [128, 128, 128, 128, 62, 62, 96]
    assert capfd.readouterr() == ("", "")


def test_multiple_choice_equals_the_log_likelihood_by_hand(model_folder: Path, tmp_path: Path):
    result = measured(model_folder, tmp_path, "topic")["cldr_topic_mlt_Latn"]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    samples = (tmp_path / "tiny" / "samples" / "cldr_topic_mlt_Latn.jsonl").read_text(encoding="utf-8")
    right = right_per_byte = 0
    for document, line in zip(asked(topic), samples.splitlines(), strict=True):
        context = tokenizer(document["context"]).input_ids
        assert context[0] == tokenizer.bos_token_id
        scores = []
        for choice in document["choices"]:
            whole = tokenizer(document["context"] + choice).input_ids
            scores.append(by_hand(model_folder, whole[: len(context)], whole[len(context) :]))
        found = [reply[0][0] for reply in json.loads(line)["resps"]]
        assert found == pytest.approx(scores, rel=1e-4)
        right += scores.index(max(scores)) == document["label"]
        per_byte = [s / len(c.encode()) for s, c in zip(scores, document["choices"], strict=True)]
        right_per_byte += per_byte.index(max(per_byte)) == document["label"]
    assert result.num_documents == 6
    assert result.scores["acc"].value == pytest.approx(right / 6)
    assert result.scores["acc_bytes"].value == pytest.approx(right_per_byte / 6)


@pytest.mark.parametrize("folder_name", ["model_folder", "no_bos_folder"])
def test_bits_per_byte_equals_the_log_likelihood_by_hand(
    folder_name: str, tmp_path: Path, request: pytest.FixtureRequest
):
    """Each token once; the prefix is BOS, or EOS without one, and stands there once."""
    folder: Path = request.getfixturevalue(folder_name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adds_bos = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    assert adds_bos == (folder_name == "model_folder")
    prefix = tokenizer.bos_token_id if adds_bos else tokenizer.eos_token_id
    nats, num_bytes, num_windows = 0.0, 0, 0
    for document in asked(bits_per_byte):
        tokens = tokenizer(document["text"], add_special_tokens=False).input_ids
        row = [prefix, *tokens]
        for start in range(0, len(tokens), MAX_LENGTH):
            # The last window reaches back for as much context as fits; only what is new is scored.
            stop = min(start + MAX_LENGTH, len(tokens))
            first = max(0, stop - MAX_LENGTH)
            nats -= by_hand(folder, row[first : start + 1], tokens[start:stop])
            num_windows += 1
        num_bytes += len(document["text"].encode("utf-8"))
    assert num_windows > 6  # at least one document is longer than a window
    result = measured(folder, tmp_path, "bits_per_byte")["cldr_bits_per_byte_mlt_Latn"]
    score = result.scores["bits_per_byte"]
    assert score.value == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert score.stderr is not None
    assert 0 < score.stderr < score.value


AWKWARD = [
    "Il-kelb\r\njiekol.\r\n\r\nIl-qattus le.\n",  # CRLF: two bytes
    "ꙮ 𓀀 🜁 ⸿ ԃ",  # characters of no piece: UTF-8 bytes, a token each
    "🜁\r\n" * 70,  # bytes over several windows, which repeat themselves
    " \t x  y \n",
    "għ",
]


@pytest.mark.parametrize("folder_name", ["model_folder", "no_bos_folder"])
def test_bits_per_byte_of_awkward_text_equals_the_log_likelihood_by_hand(
    folder_name: str, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(folder_name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    nats = []
    for text in AWKWARD:
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(tokens) == text, "nothing is lost on the way to tokens"
        row, total = [prefix, *tokens], 0.0
        for start in range(0, len(tokens), MAX_LENGTH):
            stop = min(start + MAX_LENGTH, len(tokens))
            total += by_hand(folder, row[max(0, stop - MAX_LENGTH) : start + 1], tokens[start:stop])
        nats.append(total)
    assert len(tokenizer(AWKWARD[2]).input_ids) > 3 * MAX_LENGTH
    assert len(tokenizer(AWKWARD[1], add_special_tokens=False).input_ids) >= len(AWKWARD[1].encode()) - 8
    planned, task = text_task(AWKWARD)
    result, samples = ask(folder, planned, task)
    assert [sample["bits_per_byte"][0] for sample in samples] == pytest.approx(nats, rel=1e-4)
    num_bytes = [len(text.encode("utf-8")) for text in AWKWARD]
    assert [sample["bits_per_byte"][1] for sample in samples] == num_bytes
    expected = -sum(nats) / math.log(2) / sum(num_bytes)
    assert result.scores["bits_per_byte"].value == pytest.approx(expected, rel=1e-5)


def text_task(texts: list[str]) -> tuple[PlannedTask, Task]:
    """Bits per byte of these texts, as the harness's own kind of task."""
    (planned,) = plan(part("bits_per_byte"), ["mlt"])
    settings = build_task(planned).config.to_dict()
    rows = [{"text": text} for text in texts]
    settings |= {"custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}}
    return planned, own_task(settings)


def own_task(settings: dict[str, Any]) -> Task:
    with quiet_harness():
        return ConfigurableTask(config=settings | {"task": "own"})  # pyright: ignore[reportCallIssue]


def ask(
    folder: Path, planned: PlannedTask, task: Task, *, batch_size: int = 16
) -> tuple[TaskResult, list[dict[str, Any]]]:
    with quiet_harness(), ServedModel() as model:
        model.load(
            ModelSource("tiny", str(folder)),
            ModelSettings(batch_size=batch_size),
            weights=fingerprint(folder),
        )
        task.set_config("task", planned.name)
        return harness._run_task(model, planned, task, {}, limit=None)


def written(**changes: Any) -> tuple[PlannedTask, Task]:
    """A generation task with few-shot examples and two ways of reading an answer."""
    rows = [{"question": f"{first} + {first} =", "answer": str(2 * first)} for first in range(9)]
    writing = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False} | changes
    task = own_task(
        {
            "output_type": "generate_until",
            "custom_dataset": lambda **_: {"test": Dataset.from_list(rows), "train": Dataset.from_list(rows)},
            "test_split": "test",
            "fewshot_split": "train",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": writing,
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "filter_list": [
                {"name": "whole", "filter": [{"function": "take_first"}]},
                {
                    "name": "loose",
                    "filter": [
                        {"function": "regex", "regex_pattern": "(\\d+)", "fallback": "0"},
                        {"function": "take_first"},
                    ],
                },
            ],
        }
    )
    (planned,) = plan(part("topic"), ["mlt"])
    changed = {"metric": "exact_match", "num_fewshot": 2, "filter": "loose"}
    planned = replace(planned, spec=planned.spec.model_copy(update=changed))
    _settle(task, planned, "own task")
    return planned, task


def test_generation_is_read_by_the_suites_filter_and_its_arguments_are_hashed(model_folder: Path):
    planned, task = written()
    result, samples = ask(model_folder, planned, task)
    assert (result.num_documents, len(samples)) == (9, 9)
    # 0 + 0: what the loose filter falls back to is right if no digit is written.
    values = [sample["exact_match"] for sample in samples]
    assert [sample["filter"] for sample in samples] == ["loose"] * 9
    assert result.scores["exact_match"].value == pytest.approx(sum(values) / 9)
    again, _ = ask(model_folder, planned, task, batch_size=2)
    assert again.requests_sha256 == result.requests_sha256
    assert again.scores == result.scores
    for changes in ({"max_gen_toks": 7}, {"until": ["\n", "."]}, {"temperature": 0.5}):
        other, _ = ask(model_folder, *written(**changes))
        assert other.requests_sha256 != result.requests_sha256, changes


def test_the_second_model_gets_the_same_examples(model_folder: Path, other_folder: Path):
    """The harness's sampler would go on drawing where it has left off."""
    planned, task = written()
    first, samples = ask(model_folder, planned, task)
    second, _ = ask(other_folder, planned, task)
    assert samples[0]["arguments"][0][0].count("=") == 3
    assert first.requests_sha256 == second.requests_sha256


def test_bits_per_byte_is_that_of_the_training_loop(model_folder: Path, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = [document["text"] for document in asked(bits_per_byte)]
    documents = [
        Document(torch.tensor(tokenizer(text, add_special_tokens=False).input_ids), len(text.encode()))
        for text in texts
    ]
    nll = score_documents(
        LanguageModelLoss(AutoModelForCausalLM.from_pretrained(model_folder)),
        documents,
        prefix_token_id=tokenizer.bos_token_id,
        max_length=MAX_LENGTH,
        tokens_per_batch=512,
    )
    expected = float(nll.sum()) / math.log(2) / sum(document.num_bytes for document in documents)
    result = measured(model_folder, tmp_path, "bits_per_byte")["cldr_bits_per_byte_mlt_Latn"]
    assert result.scores["bits_per_byte"].value == pytest.approx(expected, rel=1e-6)


def test_batch_size_changes_nothing_but_rounding(model_folder: Path, tmp_path: Path):
    titles = ("bits_per_byte", "topic", "cloze", "translation")
    one = measured(model_folder, tmp_path / "one", *titles, batch_size=1)
    seven = measured(model_folder, tmp_path / "seven", *titles, batch_size=7)
    for name, result in one.items():
        assert result.requests_sha256 == seven[name].requests_sha256
        values = [{metric: score.value for metric, score in r.scores.items()} for r in (result, seven[name])]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_models_are_asked_the_same(model_folder: Path, other_folder: Path, tmp_path: Path):
    results = evaluate(
        {"base": model_folder, "trained": other_folder},
        suite=part("bits_per_byte", "cloze"),
        languages=["mlt"],
        output_dir=tmp_path,
        limit=4,
    )
    assert list(results) == ["base", "trained"]
    for name, base in results["base"].items():
        trained = results["trained"][name]
        assert base.requests_sha256 == trained.requests_sha256
        assert base.settings["model_fingerprint"] != trained.settings["model_fingerprint"]
    bpb = [r["cldr_bits_per_byte_mlt_Latn"].scores["bits_per_byte"].value for r in results.values()]
    assert bpb[0] != bpb[1]


def test_only_what_is_missing_is_measured(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran: list[str] = []
    run_task = harness._run_task

    def spy(model: Any, planned: Any, *rest: Any, **options: Any) -> Any:
        ran.append(planned.title)
        return run_task(model, planned, *rest, **options)

    monkeypatch.setattr(harness, "_run_task", spy)
    first = measured(model_folder, tmp_path, "cloze", "topic")
    assert ran == ["cloze", "topic"]
    with monkeypatch.context() as patch:
        patch.setattr(harness.ServedModel, "load", lambda *_, **__: pytest.fail("the model was loaded"))
        assert measured(model_folder, tmp_path, "cloze", "topic") == first
        assert measured(model_folder, tmp_path, "cloze", "topic", batch_size=3) == first
    (tmp_path / "tiny" / "cldr_cloze_mlt_Latn.json").unlink()
    assert measured(model_folder, tmp_path, "cloze", "topic") == first
    assert ran == ["cloze", "topic", "cloze"]
    measured(model_folder, tmp_path, "cloze", limit=5)
    measured(model_folder, tmp_path, "cloze", limit=5, dtype="bfloat16")
    assert ran == ["cloze", "topic", "cloze", "cloze", "cloze"]


def test_a_limited_result_does_not_replace_a_complete_one(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limited = measured(model_folder, tmp_path, "topic", limit=1)["cldr_topic_mlt_Latn"]
    complete = replace(limited, settings=limited.settings | {"limit": None})
    rewrite_result(tmp_path / "tiny", complete)
    with monkeypatch.context() as patch:
        patch.setattr(harness, "build_task", lambda *_, **__: pytest.fail("went on"))
        with pytest.raises(
            UserError, match=r"cldr_topic_mlt_Latn\.json was measured on all documents"
        ) as caught:
            measured(model_folder, tmp_path, "cloze", "topic", limit=1)
    assert "\n" not in str(caught.value)
    assert read_result(tmp_path / "tiny", "cldr_topic_mlt_Latn") == complete
    assert measured(model_folder, tmp_path / "other", "topic", limit=1)["cldr_topic_mlt_Latn"] == limited


def test_other_weights_or_another_tokenizer_are_measured_anew(
    model_folder: Path, other_folder: Path, no_bos_folder: Path, tmp_path: Path
):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    output = tmp_path / "eval"
    first = measured(folder, output, "bits_per_byte")
    shutil.copy(other_folder / "model.safetensors", folder)
    weights = measured(folder, output, "bits_per_byte")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(no_bos_folder / name, folder)
    tokenizer = measured(folder, output, "bits_per_byte")
    values = {
        result["cldr_bits_per_byte_mlt_Latn"].scores["bits_per_byte"].value
        for result in (first, weights, tokenizer)
    }
    assert len(values) == 3


def test_an_interrupted_run_keeps_what_was_finished(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_task = harness._run_task

    def interrupted(model: Any, planned: Any, *rest: Any, **options: Any) -> Any:
        if planned.title == "topic":
            raise KeyboardInterrupt
        return run_task(model, planned, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(harness, "_run_task", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measured(model_folder, tmp_path, "cloze", "topic")
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == ["cldr_cloze_mlt_Latn.json"]
    assert list(measured(model_folder, tmp_path, "cloze", "topic")) == [
        "cldr_cloze_mlt_Latn",
        "cldr_topic_mlt_Latn",
    ]


def test_only_our_progress_is_heard(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    measured(model_folder, tmp_path, "bits_per_byte", "topic", "cloze", "translation")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["evaluating tiny"]
    assert [record for record in caplog.records if record.name.startswith("lm_eval")] == []


def test_a_folder_without_tokenizer_or_model_is_refused_before_anything_runs(
    model_folder: Path, tmp_path: Path
):
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare)
    for path in bare.glob("tokenizer*"):
        path.unlink()
    for broken, what in ((bare, "tokenizer"), (tmp_path / "nothing", "config.json")):
        with pytest.raises(UserError, match=what) as caught:
            evaluate(
                {"tiny": model_folder, "broken": broken},
                suite=part("cloze"),
                languages=["mlt"],
                output_dir=tmp_path / "eval",
            )
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"task": "cldr_topics"}, r"'topic': no task 'cldr_topics', did you mean 'cldr_topic'\?.*cldr_cloze"),
        ({"metric": "accuracy"}, r"'topic': cldr_topic has no metric 'accuracy' but acc, acc_bytes"),
        ({"direction": "lower"}, r"'topic': direction 'lower' is the wrong way round for acc"),
    ],
)
def test_a_suite_that_the_task_contradicts_is_refused(
    change: dict[str, str], expected: str, model_folder: Path, tmp_path: Path
):
    suite = part("topic")
    wrong = suite.tasks["topic"].model_copy(update=change)
    with pytest.raises(UserError, match=expected):
        measured(model_folder, tmp_path, suite=suite.model_copy(update={"tasks": {"topic": wrong}}))
    assert not list(tmp_path.iterdir())


def test_a_task_that_fails_is_one_line_and_the_others_are_kept(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    broken, output = tmp_path / "broken", tmp_path / "eval"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.lm_head.weight.data.fill_(float("nan"))
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(broken)
    suite = part("topic", "bits_per_byte", "translation")
    tasks = suite.tasks | {"topic": suite.tasks["topic"].model_copy(update={"task": "cldr_topics"})}
    suite = suite.model_copy(update={"tasks": tasks})
    where = output / "trained" / "errors" / "cldr_bits_per_byte_mlt_Latn.txt"

    def run(trained: Path, suite: Suite) -> Results:
        models = {"base": model_folder, "trained": trained}
        return evaluate(models, suite=suite, languages=["mlt"], output_dir=output, limit=4)

    capfd.readouterr()
    for _ in range(2):
        with pytest.raises(TasksFailed) as caught:
            run(broken, suite)
        assert str(caught.value) == (
            "2 of 3 tasks failed (cldr_topics_mlt_Latn; cldr_bits_per_byte_mlt_Latn of trained); the others are kept, and the "
            "same command tries these again"
        )
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 2
        assert errors[0].startswith("error: cldr_topics_mlt_Latn: suite task 'topic': no task 'cldr_topics'")
        assert errors[1].startswith(
            "error: trained: cldr_bits_per_byte_mlt_Latn failed: bits_per_byte is no finite"
        )
        assert errors[1].endswith(f"(where: {where})")
        assert "Traceback" in where.read_text()
    kept = [path.relative_to(output).as_posix() for path in output.rglob("*.json")]
    assert sorted(kept) == [
        "base/cldr_bits_per_byte_mlt_Latn.json",
        "base/cldr_translation_mlt_Latn.json",
        "trained/cldr_translation_mlt_Latn.json",
    ]
    done = run(model_folder, part("bits_per_byte", "translation"))
    assert all(len(of_model) == 2 for of_model in done.values())
    assert not where.exists()


def test_a_model_that_cannot_be_loaded_is_one_line_and_the_next_goes_on(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    broken, output = tmp_path / "model", tmp_path / "eval"
    shutil.copytree(model_folder, broken)
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}), encoding="utf-8")
    where = output / "broken" / "errors" / "loading.txt"
    capfd.readouterr()
    with pytest.raises(TasksFailed, match=r"^2 of 2 tasks failed \(cldr_topic_mlt_Latn of broken; "):
        evaluate(
            {"broken": broken, "tiny": model_folder},
            suite=part("topic", "translation"),
            languages=["mlt"],
            output_dir=output,
            limit=4,
        )
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith("error: broken cannot be loaded: ")
    assert errors[0].endswith(f"(where: {where})")
    assert "Traceback" in where.read_text(encoding="utf-8")
    assert len(list((output / "tiny").glob("*.json"))) == 2


def test_a_result_is_read_as_the_suite_of_today_reads_it(model_folder: Path, tmp_path: Path):
    first = measured(model_folder, tmp_path, "topic")["cldr_topic_mlt_Latn"]
    suite = part("topic")
    spec = suite.tasks["topic"].model_copy(update={"metric": "acc_bytes", "random_baseline": 0.2})
    suite = suite.model_copy(update={"tasks": {"subject": spec}})
    again = measured(model_folder, tmp_path, suite=suite)["cldr_topic_mlt_Latn"]
    assert (again.title, again.metric, again.random_baseline) == ("subject", "acc_bytes", 0.2)
    assert replace(again, title="topic", metric="acc", random_baseline=0.25) == first
    assert read_result(tmp_path / "tiny", "cldr_topic_mlt_Latn") == again


def test_another_config_is_another_model(model_folder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    first = measured(folder, tmp_path / "eval", "bits_per_byte", limit=2)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"transformers_version": "0"}))
    assert measured(folder, tmp_path / "eval", "bits_per_byte", limit=2) == first
    path.write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert measured(folder, tmp_path / "eval", "bits_per_byte", limit=2) != first


def test_a_language_that_cldr_hardly_knows_is_refused(model_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="too little of Latin"):
        measured(model_folder, tmp_path, "topic", languages=["Latin"])


def test_a_model_of_any_seed_is_near_chance(tmp_path: Path, bos_tokenizer: Any):
    """A random model has learnt nothing, so 0.25 must be about what it scores."""
    folder = save_model(tmp_path / "random", bos_tokenizer, seed=7)
    results = measured(folder, tmp_path / "eval", "topic", "cloze", "translation", limit=None)
    for title in ("topic", "cloze", "translation"):
        score = results[f"cldr_{title}_mlt_Latn"].scores["acc"]
        assert abs(score.value - 0.25) < 0.2


def shortened(folder: Path, to: Path, context_length: int) -> Path:
    """The same model, which says that it takes fewer tokens."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text(encoding="utf-8"))
    (to / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context_length}))
    return to


def test_what_a_short_context_cuts_is_told_and_recorded(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The settings say how much a model takes; of its windows, only where they decide the number."""
    folder = shortened(model_folder, tmp_path / "short", 40)
    results = measured(folder, tmp_path / "eval", "topic", "bits_per_byte", limit=2)
    choice, per_byte = results["cldr_topic_mlt_Latn"], results["cldr_bits_per_byte_mlt_Latn"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = [document["context"] + answer for document in asked(topic)[:2] for answer in document["choices"]]
    too_long = sum(len(tokenizer(text).input_ids) > 40 + 1 for text in whole)  # the last token is not fed
    assert (choice.num_truncated, per_byte.num_truncated) == (too_long, 0) == (5, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "tiny: cldr_topic_mlt_Latn: 5 of 8 requests were longer than the 40 tokens that the model takes, and lost their beginning"
    ]
    assert (choice.settings["context_length"], per_byte.settings["rolling_window"]) == (40, 40)
    assert "rolling_window" not in choice.settings
    assert read_result(tmp_path / "eval" / "tiny", choice.task) == choice
