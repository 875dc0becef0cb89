"""Before the GPUs are booked: real processes against a hub on the loopback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import sentencepiece
from transformers import PreTrainedTokenizerBase

from tests.evaluation.published import roomy_model, write_arc, write_flores, write_mmlu, write_suite
from tests.hub import Hub, serving
from tests.processes import REPO

ARC, FLORES, MODEL, TOKEN = "allenai/ai2_arc", "openlanguagedata/flores_plus", "org/tiny", "hf_known"
SUITES = {
    "all": ("mmlu", "arc", "flores", "heldout", "wikitext"),
    "had": ("mmlu", "arc", "flores", "heldout"),
}
RECIPE = """\
name: tiny
output_dir: {work}/runs
languages: {{target: mlt, identify: [mlt, eng]}}
model: {{path: {model}, dtype: float32}}
corpus: {{source: {{kind: cldr, records: 100}}, heldout_share: 0.1}}
train: {{tokens: all, heldout: {{tokens_per_language: 200}}}}
eval: {{limit: 1}}
"""
# `lape-ds` where sacrebleu's model has another address; it can be set in no other way.
HERE = """
from sacrebleu.tokenizers import tokenizer_spm
tokenizer_spm.SPM_MODELS["flores200"]["url"] = "{url}/files/flores200sacrebleuspm"
from lape_ds.cli import main
main()
"""
FILE = re.compile(r"GET .*/resolve/.*")


class Done(NamedTuple):
    code: int
    out: str
    err: str
    asked: list[str]  # of the hub


class Client:
    """A machine with a cache of its own that evaluates what the hub has."""

    def __init__(self, work: Path, hub: Hub):
        self.work, self.hub = work, hub
        self.recipe = work / "tiny.yaml"
        self.recipe.write_text(RECIPE.format(work=work, model=MODEL), encoding="utf-8")
        self.suites = {name: write_suite(work / f"{name}.yaml", *titles) for name, titles in SUITES.items()}

    def eval(self, suite: str, *options: str, **environment: str) -> Done:
        num_asked = len(self.hub.asked)
        lape_ds = [sys.executable, "-c", HERE.format(url=self.hub.url)]
        suite_file = str(self.suites[suite])
        command = [*lape_ds, "eval", str(self.recipe), "--suite", suite_file, "--languages", "mlt", *options]
        done = subprocess.run(
            command,
            env=self.hub.environment(self.work / "home", OMP_NUM_THREADS="1", **environment),
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=250,
        )
        return Done(done.returncode, done.stdout, done.stderr, self.hub.asked[num_asked:])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: PreTrainedTokenizerBase) -> dict[str, Done]:
    """One after the other, on one machine."""
    work = tmp_path_factory.mktemp("prefetch")
    roomy_model(work / "hub" / "models" / MODEL, bos_tokenizer, seed=0)
    for write in (write_mmlu, write_arc, write_flores):
        write(work / "hub")
    (work / "hub" / "files").mkdir()
    with (work / "hub" / "files" / "flores200sacrebleuspm").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=iter(["Kelma waħda.", "Tliet kelmiet oħra."] * 20),
            model_writer=file,
            vocab_size=40,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    granted = frozenset([TOKEN])
    with serving(work / "hub", gated={ARC: granted, FLORES: granted, MODEL: granted}) as hub:
        client = Client(work, hub)
        return {
            "stranger": client.eval("all", "--prefetch"),
            "known": client.eval("had", "--prefetch", HF_TOKEN=TOKEN),
            "offline": client.eval("had", HF_HUB_OFFLINE="1"),
        }


def test_a_failure_is_told_in_one_line_and_the_rest_goes_on(runs: dict[str, Done]):
    done = runs["stranger"]
    assert done.code == 2, done.err
    said = [
        rf"model base \({MODEL}\): MISSING, .*gated.*https://huggingface.co/{MODEL}, then log in.*",
        r"data of mmlu_anatomy_mlt_Latn: fetched [\d.]+ kB",
        rf"data of arc_easy_mlt_Latn: MISSING, .*gated.*https://huggingface.co/datasets/{ARC} and log in.*HF_TOKEN.*",
        rf"data of flores_from_english_mlt_Latn: MISSING, .*gated.*https://huggingface.co/datasets/{FLORES} and log in.*",
        rf"data of heldout_bits_per_byte_mlt_Latn: MISSING, .*{MODEL}.*gated.*",
        r"data of wikitext_mlt_Latn: MISSING, .*no hub data set EleutherAI/wikitext_document_level.*",
    ]
    for pattern, line in zip(said, done.out.splitlines(), strict=True):
        assert re.fullmatch(pattern, line)
    assert done.err == (
        "error: 5 of what this evaluation needs are missing: mend what is told above and give the command again\n"
    )


def test_what_is_there_is_not_fetched_a_second_time(runs: dict[str, Done]):
    done = runs["known"]
    assert done.code == 0, done.out + done.err
    said = [
        rf"model base \({MODEL}\): fetched [\d.]+ kB",
        r"data of mmlu_anatomy_mlt_Latn: there already",
        r"data of arc_easy_mlt_Latn: fetched [\d.]+ kB",
        r"data of flores_from_english_mlt_Latn: fetched [\d.]+ kB",
        r"data of heldout_bits_per_byte_mlt_Latn: there already",
        r"all is there; without a network: HF_HUB_OFFLINE=1 lape-ds eval …, .*HF_HOME \(.*/home\) and .*/home/sacrebleu",
    ]
    for pattern, line in zip(said, done.out.splitlines(), strict=True):
        assert re.fullmatch(pattern, line)
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["Packing mlt_Latn"]
    files = [line for line in done.asked if FILE.fullmatch(line)]
    assert len(files) == len(set(files))
    assert not [line for line in files if "mmlu" in line]
    assert "GET /files/flores200sacrebleuspm" in done.asked


def test_the_evaluation_then_asks_for_nothing(runs: dict[str, Done]):
    done = runs["offline"]
    assert done.code == 0, done.out + done.err
    assert done.asked == []
    assert "cached" not in done.err
    assert all(title in done.out for title in SUITES["had"])
