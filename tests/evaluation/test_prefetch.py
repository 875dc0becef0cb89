"""Before the GPUs are booked: real processes against a hub on the loopback."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import sentencepiece
from transformers import PreTrainedTokenizerBase

from lape_ds.corpora.cldr import sample_records
from lape_ds.evaluation.prefetch import _ask, _Needs
from lape_ds.languages import find_language
from tests.evaluation.published import (
    roomy_model,
    write_arc,
    write_dataset,
    write_flores,
    write_mmlu,
    write_suite,
)
from tests.hub import Hub, serving
from tests.processes import REPO

ARC, FLORES, MODEL, TOKEN = "allenai/ai2_arc", "openlanguagedata/flores_plus", "org/tiny", "hf_known"
TEXT, LANGUAGES = "org/text", ("mlt_Latn", "eng_Latn", "isl_Latn")
SUITES = {
    "all": ("mmlu", "arc", "flores", "heldout", "wikitext"),
    "had": ("mmlu", "arc", "flores", "heldout"),
}
RECIPE = """\
name: tiny
output_dir: {work}/runs
languages: {{target: mlt, identify: [mlt, eng]}}
model: {{path: {model}, dtype: float32}}
corpus: {{source: {{kind: hub, dataset: {text}, config: "{{code}}"}}, heldout_share: 0.2}}
identify: {{tokens_per_language: 2000, context_length: 64}}
train: {{tokens: all, heldout: {{languages: [isl], tokens_per_language: 100}}}}
launch: {{num_ranks: 1}}
eval: {{limit: 1}}
env: {{HF_HUB_OFFLINE: 1}}
"""
# `lape-ds` where sacrebleu's model has another address; it can be set in no other way.
HERE = """
from sacrebleu.tokenizers import tokenizer_spm
tokenizer_spm.SPM_MODELS["flores200"]["url"] = "{url}/files/flores200sacrebleuspm"
import sys
from lape_ds.cli import main
for command in " ".join(sys.argv[1:]).split(" then "):
    sys.argv[1:] = command.split()
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
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
        self.recipe.write_text(RECIPE.format(work=work, model=MODEL, text=TEXT), encoding="utf-8")
        self.suites = {name: write_suite(work / f"{name}.yaml", *titles) for name, titles in SUITES.items()}

    def run(self, command: str, **environment: str) -> Done:
        """Commands of `lape-ds`, one after the other in a process; `RECIPE` and the suites' names stand for their files."""
        num_asked = len(self.hub.asked)
        files = {"RECIPE": self.recipe, **self.suites}
        words = " ".join(str(files.get(word, word)) for word in command.split())
        done = subprocess.run(
            [sys.executable, "-c", HERE.format(url=self.hub.url), words],
            env=self.hub.environment(self.work / "home", OMP_NUM_THREADS="1", **environment),
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=600,
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
    for code in LANGUAGES:
        texts = [record.text for record in sample_records(find_language(code), count=400, seed=0)]
        write_dataset(work / "hub" / "datasets" / TEXT, code, {"train": [{"text": text} for text in texts]})
    granted = frozenset([TOKEN])
    with serving(work / "hub", gated={ARC: granted, FLORES: granted, MODEL: granted}) as hub:
        client = Client(work, hub)
        return {
            "stranger": client.run(f"prefetch RECIPE eval.suite={client.suites['all']}"),
            "known": client.run(f"prefetch RECIPE eval.suite={client.suites['had']}", HF_TOKEN=TOKEN),
            "offline": client.run(
                "identify RECIPE then eval RECIPE --suite had --languages mlt --prefetch "
                "then eval RECIPE --suite had --languages mlt",
                HF_HUB_OFFLINE="1",
            ),
        }


def matched(patterns: Sequence[str], lines: Sequence[str]) -> None:
    for pattern, line in zip(patterns, lines, strict=True):
        assert re.fullmatch(pattern, line)


def test_a_failure_is_told_in_one_line_and_the_rest_goes_on(runs: dict[str, Done]):
    done = runs["stranger"]
    assert done.code == 2, done.err
    said = [
        rf"model {MODEL}: MISSING, .*gated.*https://huggingface.co/{MODEL}, then log in.*",
        r"text: MISSING, it is packed by the model's tokenizer",
        r"data of mmlu_anatomy_mlt_Latn: fetched [\d.]+ kB",
        rf"data of arc_easy_mlt_Latn: MISSING, .*gated.*https://huggingface.co/datasets/{ARC} and log in.*HF_TOKEN.*",
        rf"data of flores_from_english_mlt_Latn: MISSING, .*gated.*https://huggingface.co/datasets/{FLORES} and log in.*",
        rf"data of heldout_bits_per_byte_mlt_Latn: MISSING, .*{MODEL}.*gated.*",
        r"data of wikitext_mlt_Latn: MISSING, .*no hub data set EleutherAI/wikitext_document_level.*",
        r"what is not told as missing is there, also without a network: [\d.]+ kB in .*/home.*",
        r"on nodes without one: export HF_HUB_OFFLINE=1 HF_HOME=.*/home.*",
        r"or in the recipe, .*: env: \{ HF_HUB_OFFLINE: 1, HF_HOME: .*/home.* \}",
    ]
    matched(said, done.out.splitlines())
    assert done.err == "error: 6 things are missing: mend what is told above and give the command again\n"


def test_all_that_the_stages_read_is_brought_once(runs: dict[str, Done]):
    """Although the recipe's `env` says that there is no network: that is so on other nodes."""
    done = runs["known"]
    assert done.code == 0, done.out + done.err
    commit = "[0-9a-f]{40}"
    packed = r"fetched [\d.]+ kB; [\d,]+ tokens in .*/runs/corpus/{}/[0-9a-f]{{32}}"
    said = [
        rf"model {MODEL}: fetched [\d.]+ kB; [\d.]+ kB of weights in .*/({commit}), pin it by model.revision=\1",
        *(f"text of {code}: {packed.format(code)}" for code in LANGUAGES),
        r"parallel sentences \(lape-ds analyze\): fetched [\d.]+ kB",
        r"data of mmlu_anatomy_mlt_Latn: there already",
        r"data of arc_easy_mlt_Latn: fetched [\d.]+ kB",
        r"data of flores_from_english_mlt_Latn: fetched [\d.]+ kB",
        r"data of heldout_bits_per_byte_mlt_Latn: there already",
        r"all is there, also without a network: [\d.]+ kB in .*/home, [\d.]+ kB of packed text in .*/runs/corpus",
        r"on nodes without one: export HF_HUB_OFFLINE=1 HF_HOME=.*/home SACREBLEU=.*/home/sacrebleu",
        r"or in the recipe, .*: env: \{ HF_HUB_OFFLINE: 1, HF_HOME: .*/home, SACREBLEU: .*/home/sacrebleu \}",
    ]
    matched(said, done.out.splitlines())
    packing = dict.fromkeys(line.split(":")[0] for line in done.err.splitlines())
    assert list(packing) == [f"Packing {code}" for code in LANGUAGES]
    # Text is streamed, a range of its file at a time.
    files = [line for line in done.asked if FILE.fullmatch(line) and TEXT not in line]
    assert len(files) == len(set(files))
    assert not [line for line in files if "mmlu" in line]
    assert "GET /files/flores200sacrebleuspm" in done.asked


def test_the_stages_then_ask_for_nothing(runs: dict[str, Done]):
    done = runs["offline"]
    assert done.code == 0, done.out + done.err
    assert done.asked == []
    assert "cached" not in done.err
    assert "model base (org/tiny): there already; " in done.out  # of eval --prefetch
    assert all(title in done.out for title in SUITES["had"])


def test_a_model_without_its_weights_is_missing(tmp_path: Path, bos_tokenizer: PreTrainedTokenizerBase):
    """The hub's cache has such a folder after `lape-ds plan`, which asks for the config alone."""
    roomy_model(tmp_path / "model", bos_tokenizer, seed=0)
    needs = _Needs({"base": (str(tmp_path / "model"), None)}, [], None, tmp_path)
    assert [one.fault for one in _ask(needs)] == [None]
    (tmp_path / "model" / "model.safetensors").unlink()
    (missing,) = _ask(needs)
    assert "no weights there" in str(missing.fault)
