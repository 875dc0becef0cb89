"""A tiny random Llama on disk, with tokenizers that add BOS and that have none."""

from __future__ import annotations

from pathlib import Path

import pytest
from sacrebleu.tokenizers import tokenizer_spm
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lape_ds.corpora.cldr import sample_records
from lape_ds.languages import find_language
from lape_ds.model.create import train_tokenizer
from tests.tiny_models import tiny_model

MAX_LENGTH = 96  # tokens; the longer records need several windows
LANGUAGES = ("mlt", "eng", "kat")


def save_model(folder: Path, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Path:
    model = tiny_model(
        "llama", seed=seed, vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH, num_hidden_layers=2
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bos_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    texts = [
        record.text for name in LANGUAGES for record in sample_records(find_language(name), count=150, seed=0)
    ]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "bos", 600)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: PreTrainedTokenizerBase) -> Path:
    """Its tokenizer puts BOS in front of every text."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny", bos_tokenizer, seed=0)


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: PreTrainedTokenizerBase) -> Path:
    """Another model with the same tokenizer."""
    return save_model(tmp_path_factory.mktemp("models") / "other", bos_tokenizer, seed=1)


@pytest.fixture(scope="session")
def no_bos_folder(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: PreTrainedTokenizerBase) -> Path:
    """The same pieces, but no BOS and nothing added: EOS stands before a text."""
    assert isinstance(bos_tokenizer, PreTrainedTokenizerFast)
    backend = Tokenizer.from_str(bos_tokenizer.backend_tokenizer.to_str())
    backend.post_processor = None  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")
    return save_model(tmp_path_factory.mktemp("models") / "no-bos", tokenizer, seed=0)


@pytest.fixture(scope="session")
def spbleu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where sacrebleu would have put spBLEU's tokenizer: a small one of its kind, from the same records."""
    folder = tmp_path_factory.mktemp("sacrebleu")
    (folder / "models").mkdir()
    texts = (
        record.text for name in LANGUAGES for record in sample_records(find_language(name), count=150, seed=0)
    )
    SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_prefix=str(folder / "flores200"),
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "flores200.model").rename(folder / "models" / "flores200sacrebleuspm")
    return folder


@pytest.fixture
def spbleu_model(spbleu_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """spBLEU's tokenizer is on this machine."""
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(spbleu_folder))
