"""Fixtures that every room's tests may share; all made offline, in a second at most."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lape_ds.corpora.cldr import sample_records
from lape_ds.languages import find_language
from lape_ds.model.create import create_model, train_tokenizer
from lape_ds.model.loading import fingerprint
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import CreateSection
from tests.processes import rank_server

LANGUAGES = ["mlt_Latn", "eng_Latn", "kat_Geor"]
NEURONS = {"mlt_Latn": [(0, 1), (0, 30), (2, 46)], "eng_Latn": [(0, 1), (1, 2)], "kat_Geor": []}

RECIPE = """
name: tiny
output_dir: {folder}/out
languages: {{target: mt, identify: [mt, en, ka]}}
model: {{path: {folder}/base, dtype: float32}}
corpus:
  source: {{kind: cldr, records: 300}}
  heldout_share: 0.1
train:
  neurons: {folder}/neurons.safetensors
  block_length: 32
  micro_batch_size: 2
  gradient_accumulation_steps: 2
  max_steps: 6
  optimizer: {{learning_rate: 0.01, weight_decay: 0.1}}
  schedule: {{name: cosine, warmup_steps: 2}}
  gradient_clipping: 0.5
  heldout: {{every_steps: 3, languages: [en], tokens_per_language: 300}}
  checkpoint_every_steps: 2
  replay: {{share: 0.25, languages: [ka]}}
  log_update_norms: true
deepspeed: {{zero_stage: 2}}
launch: {{num_ranks: 1}}
"""


def pytest_configure() -> None:
    """What nohup and a shell's `&` ignore, every process that is started here would ignore as well; some are tested with it."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


# Files whose fixtures take a minute or more: begun last, they would leave one of two processes with nothing to do.
_LONGEST_FIRST = (
    "tests/test_quickstart.py",
    "tests/subnetwork/test_engines.py",
    "tests/training/test_sweep.py",
    "tests/training/test_tune.py",
    "tests/training/test_heldout.py",
    "tests/training/test_train.py",
    "tests/training/plan",
    "tests/faults",
    "tests/docs",
    "tests/test_hub.py",
    "tests/evaluation/test_prefetch.py",
    "tests/test_bad_input.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the others stay in their order."""

    def rank(item: pytest.Item) -> int:
        matching = (n for n, start in enumerate(_LONGEST_FIRST) if item.nodeid.startswith(start))
        return next(matching, len(_LONGEST_FIRST))

    items.sort(key=rank)


def byte_tokenizer(*, bos: bool = True, eos: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, 256 of them behind <pad>, <s> and </s>, of those asked for."""
    wanted = (("<pad>", pad), ("<s>", bos), ("</s>", eos))
    specials = [token for token, there in wanted if there]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        pad_token="<pad>" if pad else None,
    )


@pytest.fixture(scope="session", autouse=True)
def _ranks_are_ended() -> Iterator[None]:
    yield
    if rank_server.cache_info().currsize:
        rank_server().close()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, 259 tokens: <pad> 0, <s> 1 (BOS), </s> 2 (EOS), then the 256 bytes."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a recipe whose base model (3 layers of 47 neurons, an odd number) and neurons are there."""
    folder = tmp_path_factory.mktemp("tiny")
    texts = [
        record.text
        for code in LANGUAGES
        for record in islice(sample_records(find_language(code), count=200, seed=1), 200)
    ]
    llama = {
        "hidden_size": 32,
        "intermediate_size": 47,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    section = {"vocab_size": 700, "llama": llama, "pretrain": {"method": "full"}}
    tokenizer = train_tokenizer(texts, folder / "tokenizer", 700)
    create_model(CreateSection.model_validate(section), tokenizer, folder / "base", seed=0)
    NeuronSet(
        indices={code: torch.tensor(pairs, dtype=torch.int32).view(-1, 2) for code, pairs in NEURONS.items()},
        num_layers=3,
        neurons_per_layer=47,
        model_id="tiny",
        model_fingerprint=fingerprint(folder / "base"),
        method="lape",
        knobs={},
    ).save(folder / "neurons.safetensors")
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return path


@pytest.fixture
def users_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """We stand in a folder that has text of one's own, as recipes/qwen3-1.7b.yaml reads it."""
    (tmp_path / "text" / "mlt").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"a full and a read-only disk can't be had here, so they were not tested: {done.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
