"""Held-out text of a recipe's corpus as documents of an evaluation task: `eval/tasks/heldout/bits_per_byte.yaml`.

In the evaluation room, between the planned suite and the harness. The documents are the very ones on which training measures
itself (`training/texts.py`), as text: `<folder>/heldout/<language>.jsonl`, written once, and anew when the corpus is another.

The task's number is that of the training's `heldout_bits_per_byte`, but for two things. Windows: training scores in pieces
of `train.block_length` tokens, evaluation in pieces of the model's context (4,096 tokens at most), so that a document longer
than a block has more context here. And a special token written out in a text (`</s>`) is text to the packed corpus, while the
harness lets the tokenizer take it for the token.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lape_ds.corpora.files import read_file
from lape_ds.corpora.packing import PackedCorpus
from lape_ds.corpora.reading import read_documents
from lape_ds.errors import NoText, UserError
from lape_ds.evaluation.hub_access import ask_hub, ask_hub_for_model
from lape_ds.evaluation.suites import HELDOUT_TASK, PlannedTask
from lape_ds.languages import find_language
from lape_ds.model.loading import load_tokenizer, recipe_model
from lape_ds.recipe import FilesSource, Recipe
from lape_ds.training.texts import heldout_part, heldout_text
from lape_ds.writing import told_if_unwritable, write_json, write_text

HOW_TO_GIVE_TEXT = (
    "name a recipe or a run, whose corpus holds text out, or give the task a file in a suite of your own: "
    'metadata: {path: "text/{code}.jsonl"}'
)

logger = logging.getLogger(__name__)


def documents(
    *, path: str | None = None, column: str = "text", fault: str | None = None, **_: Any
) -> dict[str, Dataset]:
    """What the task measures: every document of a file, from its first byte to its last.

    Args:
        path: .jsonl, .txt (a document a line) or .parquet, also compressed.
        column: Of the text, but for .txt.
        fault: Why the recipe's text could not be had.

    Raises:
        UserError: A fault, no path, no such file, a line in it that is no document, or none at all.
    """
    if fault is not None:
        raise UserError(fault)
    if path is None:
        raise UserError(f"task {HELDOUT_TASK} has no text: {HOW_TO_GIVE_TEXT}")
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"task {HELDOUT_TASK}: no such file {file}; {HOW_TO_GIVE_TEXT}")
    texts = []
    for item in read_file(file, FilesSource(kind="files", path=path, column=column)):
        if item.problem is not None:
            raise UserError(f"task {HELDOUT_TASK}: {item.problem}")
        if item.text is not None and item.text.strip():
            texts.append({"text": item.text})
    if not texts:
        raise UserError(
            f"task {HELDOUT_TASK}: {file} holds no document; give it some, or leave the language out"
        )
    return {"test": Dataset.from_list(texts)}


def wants_text(planned: PlannedTask) -> bool:
    """Whether it measures a recipe's text, and no file of its own."""
    return planned.harness_task == HELDOUT_TASK and "path" not in planned.metadata


def with_heldout(planned: Sequence[PlannedTask], recipe: Recipe | None, folder: Path) -> list[PlannedTask]:
    """Gives each planned `heldout_bits_per_byte` its language's text; other tasks, and those with a path, are left as they are.

    A language of which the recipe has no text is left out with a warning that says why. Where its text cannot be had for another
    reason (gated, no network, a full disk), the task is given that reason, and fails by it alone when it is built.

    Args:
        planned: Of a suite.
        recipe: Whose corpus is held out: that of the base's and the runs' training; None where only models are named.
        folder: Of the results; the text goes to `heldout/` in it.

    Raises:
        UserError: There is no recipe; or its model, which the tokenizer is of, is not there.
    """
    wanting = [wants_text(one) for one in planned]
    languages = dict.fromkeys(one.language for one in compress(planned, wanting))
    if not languages:
        return list(planned)
    if recipe is None:
        title = next(one.title for one in compress(planned, wanting))
        raise UserError(f"suite task {title!r} has no text to measure on: {HOW_TO_GIVE_TEXT}")
    ask_hub_for_model(recipe.model.path)
    if any(recipe.corpus.source_of(code).kind == "hub" for code in languages):
        ask_hub()
    tokenizer = load_tokenizer(recipe_model(recipe))
    given = {code: _given(code, recipe, tokenizer, folder / "heldout") for code in languages}
    return [
        replace(one, metadata=one.metadata | given[one.language]) if wants else one
        for one, wants in zip(planned, wanting, strict=True)
        if not wants or given[one.language]
    ]


def _given(code: str, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, str]:
    """What a language's task is told: its file, or why there is none; nothing, with a warning, where the recipe has no text."""
    try:
        return {"path": str(_text_file(code, recipe, tokenizer, folder))}
    except NoText as error:
        logger.warning("held-out bits per byte of %s is left out: %s", code, error)
        return {}
    except UserError as error:
        return {"fault": str(error)}


def _text_file(code: str, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A language's file, written if there is none of this text yet."""
    corpus = heldout_text(recipe, tokenizer, code)
    part = heldout_part(recipe, corpus)
    ordinals = corpus.heldout.ordinals(len(part.documents))
    # The corpus's fingerprint is of source, tokenizer and split; which of it is held out and measured depends on budgets, too.
    fingerprint = _sha256(json.dumps([corpus.fingerprint, ordinals]))
    path, origin = folder / f"{code}.jsonl", folder / f"{code}.source.json"
    if not _is_of(path, origin, fingerprint):
        texts = _texts_at(ordinals, recipe, corpus)
        if [len(text.encode()) for text in texts] != [document.num_bytes for document in part.documents]:
            raise UserError(f"the text of {code} changed while it was read; give the same command again")
        content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        about = {"fingerprint": fingerprint, "documents": len(texts), "bytes": part.num_bytes}
        with told_if_unwritable(str(path), kept="finished tasks"):
            write_text(path, content)
            write_json(origin, about | {"sha256": _sha256(content)})  # last: it vouches for the file
    return path


def _is_of(path: Path, origin: Path, fingerprint: str) -> bool:
    """Whether the file is there, whole, and of the text with this fingerprint."""
    if not path.is_file() or not origin.is_file():
        return False
    about = json.loads(origin.read_text(encoding="utf-8"))
    return about["fingerprint"] == fingerprint and about["sha256"] == _sha256(path.read_bytes())


def _texts_at(ordinals: Sequence[int], recipe: Recipe, corpus: PackedCorpus) -> list[str]:
    """The source's documents of these numbers, increasing: packing keeps tokens only, so the source is read again up to there."""
    code, wanted = corpus.language, set(ordinals)
    source = recipe.corpus.source_of(code)
    texts: list[str] = []
    for text, place in read_documents(source, find_language(code), on_bad_line=recipe.corpus.on_bad_line):
        if place.documents - 1 in wanted:
            texts.append(text)
        if place.documents > ordinals[-1]:
            break
    return texts


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
