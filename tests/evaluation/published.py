"""Data sets of built-in tasks in their true layout and columns, with questions made here, for `tests.hub`.

Source of names, configurations and columns: lm_eval/tasks/{mmlu,arc,wikitext}/ and the data sets' cards on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from transformers import PreTrainedTokenizerBase

from tests.tiny_models import tiny_model

LETTERS = "ABCD"
CONTEXT = 640  # tokens of `roomy_model`: five examples fit, or 512 new tokens; one long question does not
SUITE = """\
name: published
tasks:
  mmlu: {task: mmlu_anatomy, num_fewshot: 5, metric: acc, direction: higher, random_baseline: 0.25, languages: [mlt, eng]}
  arc: {task: arc_easy, num_fewshot: 5, metric: acc_norm, direction: higher, random_baseline: 0.25, languages: [mlt, eng]}
  flores: {task: flores_from_english, metadata: {language: "{code}"}, num_fewshot: 1, metric: chrf++, direction: higher}
  heldout: {task: heldout_bits_per_byte, metric: bits_per_byte, direction: lower}
  wikitext: {task: wikitext, metric: bits_per_byte, direction: lower, languages: [mlt, eng]}
"""


def roomy_model(folder: Path, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Path:
    """A tiny model whose context holds prompts with examples."""
    tiny_model(
        "llama", seed=seed, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_suite(path: Path, *titles: str) -> Path:
    """The tasks of `SUITE` with these titles."""
    kept = [
        line
        for line in SUITE.splitlines()
        if not line.startswith("  ") or line.split(":")[0].strip() in titles
    ]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


def write_mmlu(root: Path) -> None:
    splits = {"test": range(5, 12), "validation": range(2), "dev": range(5)}
    write_dataset(
        root / "datasets" / "cais" / "mmlu",
        "anatomy",
        {split: [_mmlu(number) for number in numbers] for split, numbers in splits.items()},
    )


def write_arc(root: Path) -> None:
    splits = {"train": range(20), "validation": range(20, 22), "test": range(22, 29)}
    write_dataset(
        root / "datasets" / "allenai" / "ai2_arc",
        "ARC-Easy",
        {split: [_arc(number) for number in numbers] for split, numbers in splits.items()},
    )


def write_wikitext(root: Path) -> None:
    pages = [f" = Page {number} = \n Belt il-għasel @-@ {'kelma ' * (3 * number)}. \n" for number in range(8)]
    splits = {"train": pages[:6], "validation": pages[6:7], "test": pages[4:]}
    write_dataset(
        root / "datasets" / "EleutherAI" / "wikitext_document_level",
        "wikitext-2-raw-v1",
        {split: [{"page": page} for page in some] for split, some in splits.items()},
    )


def write_flores(root: Path) -> None:
    for code, word in (("mlt_Latn", "Kelma"), ("eng_Latn", "Word"), ("isl_Latn", "Orð")):
        rows = [{"id": number, "text": f"{word} {number}."} for number in range(6)]
        write_dataset(
            root / "datasets" / "openlanguagedata" / "flores_plus",
            code,
            {"dev": rows[:3], "devtest": rows[3:]},
        )


def write_dataset(folder: Path, config: str, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Adds a configuration to a repository: a Parquet file for each split, and its lines in the card."""
    (folder / config).mkdir(parents=True)
    card = folder / "README.md"
    before = card.read_text(encoding="utf-8") if card.exists() else "---\nconfigs:\n---\n"
    lines = f"- config_name: {config}\n  data_files:\n"
    for split, rows in splits.items():
        file = f"{config}/{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / file)
        lines += f"  - {{split: {split}, path: {file}}}\n"
    card.write_text(before.removesuffix("---\n") + lines + "---\n", encoding="utf-8")


def _mmlu(number: int) -> dict[str, Any]:
    """One question has white space around it, one is longer than the tiny model's context."""
    question = f" Which bone is number {number}? Għaliex?\n" if number % 2 else f"Bone {number} is the"
    return {
        "question": question + " once more" * (200 if number == 8 else 0),
        "subject": "anatomy",
        "choices": [f"bone {number}{letter}" for letter in LETTERS],
        "answer": number % 4,
    }


def _arc(number: int) -> dict[str, Any]:
    """Some are labelled by numbers, as in the true data."""
    labels = list("1234" if number % 5 == 0 else LETTERS)
    return {
        "id": f"Mercury_{number}",
        "question": f"What is {number} + {number % 3}?",
        "choices": {"text": [f"{number + step} apples" for step in range(4)], "label": labels},
        "answerKey": labels[number % 3],
    }
