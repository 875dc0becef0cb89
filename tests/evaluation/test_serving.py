"""Requests divided over ranks: each answered once, in order, as one rank alone would."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer

from lape_ds.corpora.cldr import sample_records
from lape_ds.evaluation import lm
from lape_ds.evaluation.lm import ModelSettings, ModelSource
from lape_ds.evaluation.serving import RequestsFailed, ServedModel, _pieces, divide, serve
from lape_ds.languages import find_language
from lape_ds.model.loading import fingerprint
from tests.evaluation.conftest import MAX_LENGTH
from tests.evaluation.eval_ranks import Job
from tests.evaluation.test_harness import by_hand

WRITING = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}


def texts(count: int) -> list[str]:
    records = sample_records(find_language("mlt"), count=20 * count, seed=7)
    return [record.text for record in records if record.text.count(" ") > 9][:count]


def asked() -> dict[str, list[tuple[Any, ...]]]:
    """Of every kind: several windows, empty contexts, single tokens after one context, contexts of unlike lengths."""
    some = texts(9)
    words = [text.split(" ") for text in some]
    # Cut between words: a tokenizer that joins a continuation's pieces to the context's leaves nothing to score.
    choices = [(" ".join(of[:5]), " " + " ".join(of[5 : 5 + size])) for of in words[:5] for size in (1, 3)]
    letters = [(" ".join(of[:4]) + ":", letter) for of in words[5:] for letter in "abcd"]
    return {
        "loglikelihood": [*choices, *letters, ("", some[0][:20])],
        "loglikelihood_rolling": [(text,) for text in [*some[:4], "\n".join(some)]],
        "generate_until": [(text[: 3 + 9 * number], WRITING) for number, text in enumerate(some)],
    }


def answers(model: ServedModel, requests: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[Any]]:
    return {
        method: getattr(model, method)([Instance(method, {}, one, 0) for one in of_method])  # type: ignore[arg-type]
        for method, of_method in requests.items()
    }


def ask(folder: str, batch_size: int, out: str) -> None:
    """What each of several ranks runs."""
    from lape_ds.distributed import ranks

    ranks.join()
    ranks.take_device()
    if ranks.rank() > 0:
        code = serve()
    else:
        code = 0
        with ServedModel() as model:
            settings, weights = ModelSettings(batch_size=batch_size), fingerprint(Path(folder))
            with pytest.raises(RequestsFailed, match=r"^rank 0 on .*"):
                model.load(replace(source(folder), pack=Path(out)), settings, weights=weights)
            model.load(source(folder), settings, weights=weights)
            model.advance = broken_pipe  # the other rank's answers are on their way
            with pytest.raises(BrokenPipeError):
                answers(model, {"loglikelihood": [("", text) for text in texts(40)]})
            model.advance = lambda share: None
            with pytest.raises(
                RequestsFailed, match=r"rank 1 on .*: answers may have 9999 tokens here, and the model"
            ):
                answers(
                    model, {"generate_until": [("long", WRITING), ("a", WRITING | {"max_gen_toks": 9999})]}
                )
            found = answers(model, asked() | {"loglikelihood": asked()["loglikelihood"]})
            one = answers(
                model, {"loglikelihood_rolling": asked()["loglikelihood_rolling"][:1]}
            )  # fewer than ranks
        Path(out).write_text(json.dumps([found, one]), encoding="utf-8")
    ranks.end()
    ranks.leave(code)


def broken_pipe(share: float) -> None:
    raise BrokenPipeError


def source(folder: str) -> ModelSource:
    return ModelSource("tiny", folder)


def alone(
    folder: Path, batch_size: int, requests: dict[str, list[tuple[Any, ...]]] | None = None
) -> dict[str, list[Any]]:
    with ServedModel() as model:
        model.load(source(str(folder)), ModelSettings(batch_size=batch_size), weights=fingerprint(folder))
        return answers(model, requests or asked())


def assert_alike(found: dict[str, list[Any]], expected: dict[str, list[Any]]) -> None:
    assert found["generate_until"] == expected["generate_until"]
    assert found["loglikelihood_rolling"] == pytest.approx(expected["loglikelihood_rolling"], rel=1e-5)
    for mine, theirs in zip(found["loglikelihood"], expected["loglikelihood"], strict=True):
        assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
        assert mine[1] == theirs[1]


@pytest.mark.parametrize("num_shares", [1, 2, 5, 40])
def test_every_request_is_in_one_share_and_contexts_stay_together(num_shares: int):
    requests: list[tuple[Any, ...]] = [
        ("c" * random.Random(number // 4).randint(1, 900) + str(number // 4), "x" * (number % 7))
        for number in range(120)
    ]
    shares = divide(requests, num_shares)
    assert len(shares) == num_shares
    assert Counter(number for share in shares for number in share) == Counter(range(120))
    for share in shares:
        contexts = [requests[number][0] for number in share]
        assert len(set(contexts)) == sum(1 for i, c in enumerate(contexts) if i == 0 or contexts[i - 1] != c)
        lengths = [
            max(len(c) + len(requests[n][1]) for n in range(120) if requests[n][0] == c)
            for c in dict.fromkeys(contexts)
        ]
        assert lengths == sorted(lengths, reverse=True)
    of_context = Counter(requests[number][0] for number in range(120))
    loads = [sum(len(requests[n][0]) + len(requests[n][1]) for n in share) for share in shares]
    # No share has more than another by more than one context's requests.
    assert max(loads) - min(loads) <= max(count * (len(context) + 8) for context, count in of_context.items())
    if num_shares <= len(of_context):
        assert all(shares)


def test_requests_that_all_have_one_context_are_divided():
    """As where a benchmark's documents are whole sentences, after nothing."""
    requests: list[tuple[Any, ...]] = [("", "x" * (number % 90)) for number in range(1000)]
    shares = divide(requests, 4)
    assert Counter(number for share in shares for number in share) == Counter(range(1000))
    assert max(map(len, shares)) - min(map(len, shares)) <= 32
    loads = [sum(len(requests[number][1]) for number in share) for share in shares]
    assert max(loads) - min(loads) <= 16 * 90
    pieces = list(_pieces([requests[number] for number in shares[0]], 8))
    assert [one for piece in pieces for one in piece] == [requests[number] for number in shares[0]]
    assert max(map(len, pieces)) <= 8 + 16


def test_two_ranks_answer_as_one_does_with_another_batch_size(model_folder: Path, tmp_path: Path):
    out = tmp_path / "answers.json"
    job = Job(tmp_path / "job").start(ask, str(model_folder), 4, str(out), world_size=2)
    expected = alone(model_folder, 1)
    assert job.end() == [0, 0], job.output
    found, one = json.loads(out.read_text(encoding="utf-8"))
    assert_alike(found, expected)
    assert one["loglikelihood_rolling"] == pytest.approx(expected["loglikelihood_rolling"][:1], rel=1e-5)


@pytest.mark.parametrize("folder_name", ["model_folder", "no_bos_folder"])
def test_what_is_written_does_not_depend_on_the_batch(folder_name: str, request: pytest.FixtureRequest):
    """Against greedy search by hand: one text at a time, no padding, no cache."""
    folder: Path = request.getfixturevalue(folder_name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = []
    for context, _ in asked()["generate_until"]:
        tokens = tokenizer(context).input_ids
        assert tokens.count(tokenizer.bos_token_id) == (folder_name == "model_folder")
        written: list[int] = []
        while len(written) < WRITING["max_gen_toks"] and tokenizer.eos_token_id not in written:  # type: ignore[operator]
            with torch.no_grad():
                written.append(int(model(torch.tensor([tokens + written])).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(written, skip_special_tokens=True).split("\n")[0])
    assert len(set(expected)) > 1
    for batch_size in (1, 9):
        assert alone(folder, batch_size)["generate_until"] == expected


def test_a_continuation_that_the_tokenizer_joins_to_the_context_is_scored(model_folder: Path):
    """From the first piece that differs; the harness would fail, and with it the task."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    pairs = [(text[:cut], text[cut : cut + 2]) for text in texts(9) for cut in range(9, 50)]
    joined: list[tuple[Any, ...]] = []
    expected = []
    for context, continuation in pairs:
        own, whole = tokenizer(context).input_ids, tokenizer(context + continuation).input_ids
        if len(whole) <= len(own) and not context.endswith(" "):
            joined.append((context, continuation))
            start = next((n for n, token in enumerate(whole) if token != own[n]), len(whole) - 1)
            expected.append(by_hand(model_folder, whole[:start], whole[start:]))
    assert joined
    with ServedModel() as model:
        model.load(source(str(model_folder)), ModelSettings(), weights=fingerprint(model_folder))
        found = answers(model, {"loglikelihood": joined})["loglikelihood"]
    assert [score for score, _ in found] == pytest.approx(expected, rel=1e-4)


def test_only_rolling_windows_are_capped_and_what_is_cut_is_counted(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    text = "\n".join(texts(9))
    window = 32
    tokens = tokenizer(text, add_special_tokens=False).input_ids[: 2 * window + 5]
    text, row, rolled = tokenizer.decode(tokens), [tokenizer.bos_token_id, *tokens], 0.0
    for start in range(0, len(tokens), window):
        stop = min(start + window, len(tokens))
        rolled += by_hand(model_folder, row[max(0, stop - window) : start + 1], tokens[start:stop])
    context = text[: len(text) // 2 + 20]  # more tokens than a window
    whole, own = tokenizer(context + " a").input_ids, tokenizer(context).input_ids
    assert window < len(own) < MAX_LENGTH
    monkeypatch.setattr(lm, "LONGEST_WINDOW", window)
    with ServedModel() as model:
        model.load(source(str(model_folder)), ModelSettings(), weights=fingerprint(model_folder))
        found = answers(model, {"loglikelihood_rolling": [(text,)], "loglikelihood": [(context, " a")]})
        assert found["loglikelihood_rolling"] == pytest.approx([rolled], rel=1e-5)
        score = by_hand(model_folder, whole[: len(own)], whole[len(own) :])
        assert found["loglikelihood"][0][0] == pytest.approx(score, rel=1e-4)
        assert model.num_truncated == 0
        room = WRITING | {"max_gen_toks": MAX_LENGTH - 20}
        answers(
            model,
            {"loglikelihood": [(3 * text, " a"), ("b", " a")], "generate_until": [(text, room), ("b", room)]},
        )
        assert model.num_truncated == 2


def test_long_requests_are_fewer_at_a_time(model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A batch's logits are held as a whole: their size must not grow with the prompts."""
    requests = {name: of for name, of in asked().items() if name != "generate_until"}
    expected = alone(model_folder, 1, requests)
    shapes: list[tuple[int, int]] = []
    call = lm.HarnessModel._model_call

    def spy(model: Any, rows: torch.Tensor, **settings: Any) -> torch.Tensor:
        shapes.append((rows.shape[0], rows.shape[1]))
        return call(model, rows, **settings)

    monkeypatch.setattr(lm.HarnessModel, "_model_call", spy)
    monkeypatch.setattr(lm, "_TOKENS_PER_REQUEST", 16)
    found = alone(model_folder, 8, requests)
    assert all(rows == 1 or rows * length <= 8 * 16 for rows, length in shapes)
    assert max(rows for rows, _ in shapes) > 2
    assert max(length for _, length in shapes) > 8 * 16 / 2
    for method, answered in expected.items():
        numbers = [
            [one[0] if isinstance(one, tuple) else one for one in of] for of in (found[method], answered)
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)


def test_a_checkpoints_own_way_of_writing_is_not_used(model_folder: Path, tmp_path: Path):
    folder = tmp_path / "sampling"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.generation_config.update(do_sample=True, temperature=5.0, max_new_tokens=2, repetition_penalty=9.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    assert alone(folder, 4)["generate_until"] == alone(model_folder, 4)["generate_until"]


def test_bos_in_one_text_of_a_batch_says_nothing_of_the_others(model_folder: Path):
    requests = [("<s>Il-", WRITING), ("Il-Ġimgħa, it-Tlieta u", WRITING)]
    with ServedModel() as model:
        model.load(source(str(model_folder)), ModelSettings(batch_size=2), weights=fingerprint(model_folder))
        both = answers(model, {"generate_until": requests})["generate_until"]
        each = [answers(model, {"generate_until": [one]})["generate_until"][0] for one in requests]
    assert both == each
