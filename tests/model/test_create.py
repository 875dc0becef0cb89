"""The tiny tokenizer gives text back as it was; the tiny model is an ordinary folder."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lape_ds.errors import UserError
from lape_ds.model.create import create_model, train_tokenizer
from lape_ds.recipe import CreateSection

# The first article of the Universal Declaration of Human Rights, or its start.
TEXTS = [
    "Il-bnedmin kollha jitwieldu ħielsa u ugwali fid-dinjità u d-drittijiet.",
    "Alle menslike wesens word vry, met gelyke waardigheid en regte, gebore.",
    "Všetci ľudia sa rodia slobodní a sebe rovní, čo sa týka ich dôstojnosti a práv.",
    "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "सबै व्यक्तिहरू जन्मजात स्वतन्त्र हुन् ती सबैको समान अधिकार र महत्व छ।",
    "人人生而自由，在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
]
UNSEEN = ["", " ", "  two  spaces ", "\ttab\nline\r\n", "Ω≈ç√∫", "😀 👩‍👩‍👧", "ยินดี", "a", "…", "1234,5 €"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("create") / "tokenizer"
    train_tokenizer(TEXTS * 20, folder, 400)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("text", TEXTS + UNSEEN)
def test_text_comes_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ) == (0, 1, 2, 3)
    assert tokenizer.encode("a")[0] == 1
    assert 1 not in tokenizer.encode("a", add_special_tokens=False)
    assert len(tokenizer) == 400


def test_no_space_is_added_in_front(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.encode("Alle", add_special_tokens=False) != tokenizer.encode(
        " Alle", add_special_tokens=False
    )


def test_pieces_are_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    """Less than a token for two UTF-8 bytes: the vocabulary is not bytes alone."""
    text = "".join(TEXTS)
    assert len(tokenizer.encode(text)) < len(text.encode()) / 2


def test_same_text_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(TEXTS * 20, tmp_path / "again", 400)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]  # no temporary left


def test_folder_of_other_things_is_left_as_it_is(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Only what was made here before is replaced: a tokenizer or a model."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    for make in (
        lambda: train_tokenizer(TEXTS * 20, tmp_path / "thesis", 400),
        lambda: create_model(create_section(), tokenizer, tmp_path / "thesis", seed=0),
    ):
        with pytest.raises(UserError, match=r"thesis holds other things and is left as it is"):
            make()
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
    (tmp_path / "empty").mkdir()
    create_model(create_section(), tokenizer, tmp_path / "empty", seed=0)
    create_model(create_section(num_hidden_layers=1), tokenizer, tmp_path / "empty", seed=0)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "empty").config.num_hidden_layers == 1


def test_vocabulary_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab_size=4096.*too high"):
        train_tokenizer(TEXTS, tmp_path / "a", 4096)
    with pytest.raises(UserError, match=r"vocab_size=262: .*smaller than required_chars"):
        train_tokenizer(TEXTS, tmp_path / "a", 262)
    with pytest.raises(UserError, match="no text at all"):
        train_tokenizer([], tmp_path / "a", 400)
    assert not list(tmp_path.iterdir())


LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 23,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def create_section(**llama: object) -> CreateSection:
    return CreateSection.model_validate({"llama": LLAMA | llama, "pretrain": {"method": "full"}})


def test_model_folder(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    made = create_model(create_section(), tokenizer, tmp_path / "model", seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True)
    assert loaded.config.vocab_size == 400
    assert (loaded.config.bos_token_id, loaded.config.eos_token_id, loaded.config.pad_token_id) == (1, 2, 0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(made.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True).encode(
        "a"
    ) == tokenizer.encode("a")


def test_seed_decides_the_weights(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    first, again, other = (
        create_model(create_section(), tokenizer, tmp_path / name, seed=seed).lm_head.weight
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_unknown_setting_is_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hiden_size is no setting of a Llama"):
        create_model(create_section(hiden_size=8), tokenizer, tmp_path / "model", seed=0)
