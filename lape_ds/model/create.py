"""A tiny model from nothing: a SentencePiece tokenizer and a random Llama, for the quickstart and for tests.

Before corpora are packed; what comes out are ordinary Hugging Face folders.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lape_ds.errors import UserError
from lape_ds.model.loading import without_bars
from lape_ds.recipe import CreateSection
from lape_ds.writing import whole_folder

_PAD, _BOS, _EOS, _UNK = "<pad>", "<s>", "</s>", "<unk>"  # ids 0 to 3
_MADE_HERE = ("config.json", "tokenizer.json")  # a model, or a tokenizer
_SPACE = "\u2581"  # how SentencePiece writes a space


def train_tokenizer(documents: Iterable[str], folder: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """Trains a SentencePiece unigram model and saves it as a tokenizer that `AutoTokenizer` loads offline.

    Text comes back from it as it went in, in every script: no normalisation, no added leading space, unknown
    characters as UTF-8 bytes (only U+2581, SentencePiece's own mark of a space, comes back as a space). It
    puts BOS in front, as Llama's does, unless told `add_special_tokens=False`.

    Args:
        documents: Text, each read once.
        folder: Made; an earlier tokenizer or model there is replaced.
        vocab_size: Pieces in all, with 4 special ones and 256 bytes.

    Raises:
        UserError: No text, a vocabulary that the text cannot fill or that cannot hold its characters, or a
            folder of something else.
    """
    with whole_folder(folder, marker_files=_MADE_HERE) as temporary:
        tokenizer = _as_huggingface(_train_sentencepiece(documents, vocab_size))
        tokenizer.save_pretrained(temporary)
    return tokenizer


def _train_sentencepiece(documents: Iterable[str], vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(documents),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=0.9995,  # what is rarer is spelt in bytes
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            max_sentence_length=1 << 20,  # bytes; longer documents would be left out without a word
            num_threads=1,  # its sums of floats depend on the number of threads
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split("] ")[-1]
        raise UserError(
            f"the tokenizer cannot be trained with model.create.vocab_size={vocab_size}: "
            f"{reason or 'no text at all'}"
        ) from error
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def _as_huggingface(model: sentencepiece.SentencePieceProcessor) -> PreTrainedTokenizerBase:
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=model.unk_id(), byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", pair=f"{_BOS} $A {_BOS} $B", special_tokens=[(_BOS, model.bos_id())]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        unk_token=_UNK,
        clean_up_tokenization_spaces=False,
    )


def create_model(
    create: CreateSection, tokenizer: PreTrainedTokenizerBase, folder: Path, seed: int
) -> PreTrainedModel:
    """Saves a random Llama with its tokenizer, float32, as a Hugging Face model folder.

    Args:
        create: `create.llama` are keyword arguments of `LlamaConfig`; vocabulary and special ids come from
            the tokenizer.
        tokenizer: Goes into the folder too.
        folder: Made; an earlier tokenizer or model there is replaced.
        seed: Of the weights. The process's own random state is left as it is.

    Raises:
        UserError: A setting that Llama does not have, or a folder of something else.
    """
    known = {field.name for field in fields(LlamaConfig)}
    unknown = sorted(set(create.llama) - known)
    if unknown:
        raise UserError(
            f"model.create.llama: {', '.join(unknown)} is no setting of a Llama; allowed: "
            f"{', '.join(sorted(known))}"
        )
    special = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with whole_folder(folder, marker_files=_MADE_HERE) as temporary, without_bars():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(**(create.llama | special)))
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return model.eval()
