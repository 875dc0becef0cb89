"""Built-in tasks measured by `lape-ds eval` and by the `lm_eval` command line, on the same folder and the same data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.evaluation.published import (
    CONTEXT,
    roomy_model,
    write_arc,
    write_mmlu,
    write_suite,
    write_wikitext,
)
from tests.evaluation.test_harness import by_hand
from tests.hub import serving
from tests.processes import REPO

Document = list[list[str]]  # the arguments of each of its requests


class Measured(NamedTuple):
    folder: Path  # of the model that both have measured
    results: dict[str, dict[str, Any]]  # task -> metric -> value, of `lm_eval`
    theirs: dict[str, list[dict[str, Any]]]  # task -> samples
    ours: Path  # a folder for each model

    def samples(self, task: str, label: str = "tiny") -> list[dict[str, Any]]:
        """Ours, in the order of the documents."""
        lines = (self.ours / label / "samples" / f"{task}_eng_Latn.jsonl").read_text(encoding="utf-8")
        return sorted(map(json.loads, lines.splitlines()), key=lambda sample: sample["doc_id"])

    def score(self, task: str, metric: str) -> float:
        result = json.loads((self.ours / "tiny" / f"{task}_eng_Latn.json").read_text(encoding="utf-8"))
        return result["scores"][metric]["value"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: PreTrainedTokenizerBase) -> Measured:
    work = tmp_path_factory.mktemp("parity")
    for seed, name in enumerate(("tiny", "first")):
        roomy_model(work / name, bos_tokenizer, seed=seed)
    for write in (write_mmlu, write_arc, write_wikitext):
        write(work / "hub")
    suite = write_suite(work / "published.yaml", "mmlu", "arc", "wikitext")
    with serving(work / "hub") as hub:
        environment = hub.environment(work / "home", OMP_NUM_THREADS="1")
        theirs = "--model hf --tasks mmlu_anatomy,arc_easy,wikitext --num_fewshot 5 --log_samples --device cpu --batch_size 1"
        paths = [
            "--model_args",
            f"pretrained={work / 'tiny'},dtype=float32",
            "--output_path",
            str(work / "theirs"),
        ]
        run([sys.executable, "-m", "lm_eval", *theirs.split(), *paths], environment)
        # What the harness has fetched is ours too, without a network. Another model is measured first.
        ours = [str(work / "first"), str(work / "tiny"), "--suite", str(suite), "--languages", "eng"]
        ours += ["--output", str(work / "ours"), "--batch-size", "1"]
        num_asked = len(hub.asked)
        run([sys.executable, "-m", "lape_ds.cli", "eval", *ours], environment | {"HF_HUB_OFFLINE": "1"})
        assert len(hub.asked) == num_asked
    (results,) = (work / "theirs").rglob("results_*.json")
    samples = {
        path.name.split("_2")[0].removeprefix("samples_"): path for path in results.parent.glob("samples_*")
    }
    return Measured(
        work / "tiny",
        json.loads(results.read_text(encoding="utf-8"))["results"],
        {
            task: sorted(
                map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=lambda one: one["doc_id"]
            )
            for task, path in samples.items()
        },
        work / "ours",
    )


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def prompts(samples: list[dict[str, Any]]) -> list[Document]:
    """Every argument of every request; `lm_eval` writes them under names, the harness in process as lists."""
    found: list[Document] = []
    for sample in samples:
        arguments = sample["arguments"]
        by_name = isinstance(arguments, dict)
        found.append([list(request.values()) for request in arguments.values()] if by_name else arguments)
    return found


def log_likelihoods(samples: list[dict[str, Any]]) -> list[float]:
    return [float(reply[0][0]) for sample in samples for reply in sample["resps"]]


@pytest.mark.parametrize("task", ["mmlu_anatomy", "arc_easy"])
def test_the_command_line_of_the_harness_gives_the_same(measured: Measured, task: str):
    """Every byte of every prompt, and every log-likelihood. MMLU shows its own first five examples; ARC's are drawn for each
    document."""
    ours, theirs = measured.samples(task), measured.theirs[task]
    assert prompts(ours) == prompts(theirs)
    assert [sample["doc_hash"] for sample in ours] == [sample["doc_hash"] for sample in theirs]
    assert log_likelihoods(ours) == pytest.approx(log_likelihoods(theirs), rel=1e-6)
    assert measured.score(task, "acc") == measured.results[task]["acc,none"]


def test_prompts_are_those_published(measured: Measured):
    """MMLU's own first five examples, in their order, one with its white space stripped; BOS is not text."""
    begin = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    for number in range(6):
        begin += f"Which bone is number {number}? Għaliex?\n" if number % 2 else f"Bone {number} is the\n"
        begin += "".join(f"{letter}. bone {number}{letter}\n" for letter in "ABCD")
        begin += f"Answer: {'ABCD'[number % 4]}\n\n"
    first = measured.samples("mmlu_anatomy")[0]["arguments"]
    assert first == [[begin.removesuffix(" B\n\n"), f" {letter}"] for letter in "ABCD"]


def test_prompts_that_fit_begin_with_one_bos(measured: Measured):
    """What both sides have scored is, by hand, BOS and the prompt; the long one has lost its beginning."""
    tokenizer = AutoTokenizer.from_pretrained(measured.folder)
    lost = 0
    for sample in measured.samples("mmlu_anatomy"):
        for (context, choice), reply in zip(sample["arguments"], sample["resps"], strict=True):
            whole = tokenizer(context + choice).input_ids
            length = len(whole) - len(tokenizer(context).input_ids)
            assert whole.count(tokenizer.bos_token_id) == 1
            lost += len(whole) > CONTEXT + 1
            row = whole[-(CONTEXT + 1) :]
            assert float(reply[0][0]) == pytest.approx(
                by_hand(measured.folder, row[:-length], row[-length:]), rel=1e-5
            )
    assert lost == 4


def test_every_model_gets_the_same_examples(measured: Measured):
    """The harness's way of drawing would give the second model those after the first's."""
    for task in ("mmlu_anatomy", "arc_easy", "wikitext"):
        assert measured.samples(task, "first") != measured.samples(task)
        assert prompts(measured.samples(task, "first")) == prompts(measured.samples(task))


def test_rolling_differs_by_the_second_bos_that_the_harness_scores(measured: Measured):
    """Ours is log p(text | BOS) by hand; the command line's is log p(BOS text | BOS), as if BOS were text."""
    tokenizer = AutoTokenizer.from_pretrained(measured.folder)
    bos = tokenizer.bos_token_id
    ours, theirs = measured.samples("wikitext"), measured.theirs["wikitext"]
    assert prompts(ours) == prompts(theirs)
    for our, their in zip(ours, theirs, strict=True):
        ((text,),) = our["arguments"]
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        assert float(our["resps"][0][0]) == pytest.approx(by_hand(measured.folder, [bos], tokens), rel=1e-5)
        doubled = by_hand(measured.folder, [bos], [bos, *tokens])
        assert float(their["resps"][0][0]) == pytest.approx(doubled, rel=1e-5)
    assert measured.score("wikitext", "bits_per_byte") != measured.results["wikitext"]["bits_per_byte,none"]
