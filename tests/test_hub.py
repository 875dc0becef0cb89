"""Models and corpora by their hub ids, end to end: `lape-ds corpus` in processes of its own against a hub on the loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import pytest

from tests.conftest import byte_tokenizer
from tests.hub import commit, serving
from tests.processes import REPO
from tests.tiny_models import tiny_model

MODEL, TEXT, TOKEN = "org/tiny", "org/text", "hf_known"
NUM_ROWS = 1500  # in each of two files; packing reads a thousand at once
RECIPE = """\
name: tiny
output_dir: {work}/runs
languages: {{target: mlt, identify: [mlt, eng]}}
model: {{path: {model}, revision: v2, dtype: float32}}
corpus:
  source: {{kind: hub, dataset: {text}, config: "{{glotcc}}", column: content, revision: v1}}
  per_language: {{eng: {{kind: cldr, records: 200}}}}
  heldout_share: 0.2
identify: {{tokens_per_language: 3000}}
train: {{tokens: all}}
"""
MODELS = """
from lape_ds.errors import UserError
from lape_ds.model.loading import resolve_model
for path, revision in [("org/tiny", "v3"), ("org/nothing", None), ("org/gated", None), ("org/tiny", "main")]:
    try:
        print(resolve_model(path, revision))
    except UserError as error:
        print(error)
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str
    asked: list[str]  # of the hub

    def files(self) -> list[str]:
        """What was read from repositories, in order, each once."""
        found = [re.fullmatch(r"GET .*/resolve/[0-9a-f]{40}/(.*)", line) for line in self.asked]
        return list(dict.fromkeys(match[1] for match in found if match))


class Runs(NamedTuple):
    work: Path
    commits: dict[str, str]  # of model and text
    done: dict[str, Done]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One after the other, on one machine. What is wanted of a repository is not on its main branch."""
    work = tmp_path_factory.mktemp("hub")
    models, datasets = work / "hub" / "models" / "org", work / "hub" / "datasets" / "org"
    for name in ("tiny", "gated"):
        (models / name).mkdir(parents=True)
        (models / name / "config.json").write_text("{}")
    tiny_model("llama", vocab_size=259).save_pretrained(models / "tiny@v2")
    byte_tokenizer().save_pretrained(models / "tiny@v2")
    (models / "tiny@v2" / "pytorch_model.bin").write_text("a second copy of the weights")
    for folder in ("text", "text@v1/mlt-Latn"):
        (datasets / folder).mkdir(parents=True)
    (datasets / "text" / "README.md").write_text("nothing yet\n")
    for part in range(2):
        rows = [{"content": f"Sentenza {part}/{row} għal kollox."} for row in range(NUM_ROWS)]
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(
            table, datasets / "text@v1" / "mlt-Latn" / f"{part}.parquet", row_group_size=300
        )
    card = "---\nconfigs:\n- {config_name: mlt-Latn, data_files: 'mlt-Latn/*.parquet'}\n---\n"
    (datasets / "text@v1" / "README.md").write_text(card)
    recipe = work / "tiny.yaml"
    recipe.write_text(RECIPE.format(work=work, model=MODEL, text=TEXT), encoding="utf-8")
    corpus = ["-m", "lape_ds.cli", "corpus", str(recipe)]
    granted = {TEXT: frozenset([TOKEN]), "org/gated": frozenset([TOKEN])}
    with serving(work / "hub", gated=granted) as hub:

        def run(*arguments: str, **environment: str) -> Done:
            num_asked = len(hub.asked)
            done = subprocess.run(
                [sys.executable, *arguments],
                env=hub.environment(work / "home", OMP_NUM_THREADS="1", **environment),
                cwd=REPO,
                capture_output=True,
                text=True,
                timeout=250,
            )
            return Done(done.returncode, done.stdout, done.stderr, hub.asked[num_asked:])

        done = {
            "stranger": run(*corpus),
            "short": run(*corpus, "train.tokens=3000", HF_TOKEN=TOKEN),
            "whole": run(*corpus, HF_TOKEN=TOKEN),
            "offline": run(*corpus, HF_HUB_OFFLINE="1"),
            "models": run("-c", MODELS),
        }
    return Runs(work, {"model": commit(models / "tiny@v2"), "text": commit(datasets / "text@v1")}, done)


def test_a_gated_data_set_without_a_token(runs: Runs):
    done = runs.done["stranger"]
    assert done.code == 2
    assert done.err.endswith(
        f"error: corpus.source.dataset: hub data set {TEXT} (mlt-Latn) is gated or private: accept its terms at "
        f"https://huggingface.co/datasets/{TEXT} and log in (`hf auth login`, or set HF_TOKEN)\n"
    )


def test_a_model_at_a_revision_comes_once_and_without_its_second_copy(runs: Runs):
    files = runs.done["stranger"].files()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert "pytorch_model.bin" not in files
    snapshots = runs.work / "home" / "hub" / f"models--{MODEL.replace('/', '--')}" / "snapshots"
    assert (snapshots / runs.commits["model"] / "model.safetensors").is_file()
    for later in ("short", "whole"):
        assert not set(files) & set(runs.done[later].files())


def test_no_more_text_is_read_than_is_wanted(runs: Runs):
    done = runs.done["short"]
    assert done.code == 0, done.err
    assert re.search(r"identify.tokens_per_language mlt_Latn: [\d,]+ tokens packed, \d+ held out", done.out)
    assert "mlt-Latn/0.parquet" in done.files()
    assert "mlt-Latn/1.parquet" not in done.files()


def test_reading_goes_on_where_it_ended(runs: Runs):
    """Every row of both files is packed, and once: the tokens are those of the bytes, BOS and EOS."""
    done = runs.done["whole"]
    assert done.code == 0, done.err
    found = re.search(r"train.tokens mlt_Latn: ([\d,]+) tokens packed, ([\d,]+) held out", done.out)
    assert found is not None
    texts = [f"Sentenza {part}/{row} għal kollox." for part in range(2) for row in range(NUM_ROWS)]
    expected = sum(len(text.encode()) + 2 for text in texts)
    assert sum(int(number.replace(",", "")) for number in found.groups()) == expected
    (known,) = (runs.work / "runs" / "corpus").rglob("hub.json")
    assert runs.commits["text"] in known.read_text(encoding="utf-8")


def test_offline_what_is_packed_is_taken(runs: Runs):
    done = runs.done["offline"]
    assert done.code == 0, done.err
    assert done.asked == []
    assert done.out == runs.done["whole"].out
    assert "taking it as last seen here" in done.err


def test_models_that_cannot_be_had(runs: Runs):
    done = runs.done["models"]
    assert done.code == 0, done.err
    revision, nothing, gated, main = done.out.splitlines()
    assert revision == "model.path=org/tiny (revision v3): the hub has no such revision; check model.revision"
    assert nothing.startswith("model.path=org/nothing: neither a folder here nor a model on the hub")
    assert gated.startswith(
        "model.path=org/gated: gated on the hub; accept its terms at https://huggingface.co/org/gated,"
    )
    assert json.loads((Path(main) / "config.json").read_text()) == {}
