"""Documents of the tasks on public data sets that the harness lacks: what `eval/tasks/{flores,opus,sib}/*.yaml` call.

In the evaluation room, before the harness: each function makes one task's splits for one language. The text itself is not
shipped: it comes from the hub with the user's token, or from a local copy (`data_sources.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from lape_ds.errors import UserError
from lape_ds.evaluation.data_sources import load_splits, only_columns
from lape_ds.languages import Language, find_language

PIVOT = "eng_Latn"  # the other side of every translation
FLORES = "openlanguagedata/flores_plus"  # on the hub, where recipes name local copies by it (`eval.datasets`)
# SIB-200's categories. Source: its dataset card (Davlan/sib200).
TOPICS = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]

Splits = dict[str, Dataset]


def flores_from_english(*, language: str, dataset: str, **_: Any) -> Splits:
    """Sentences of FLORES+ to be translated from English: `dev` for examples, `devtest` to be scored.

    Args:
        language: Any name or code.
        dataset: FLORES+ on the hub, or a local copy. Columns: `id`, `text`.

    Returns:
        Splits with the columns of `_pairs`.

    Raises:
        UserError: FLORES+ lacks the language, or cannot be read.
    """
    return _flores(find_language(PIVOT), find_language(language), dataset, "flores_from_english")


def flores_to_english(*, language: str, dataset: str, **_: Any) -> Splits:
    """The same, to be translated into English."""
    return _flores(find_language(language), find_language(PIVOT), dataset, "flores_to_english")


def flores_text(*, language: str, dataset: str, **_: Any) -> Splits:
    """The sentences of FLORES+ devtest, to be scored from the first byte to the last.

    Args:
        language: Any name or code.
        dataset: FLORES+ on the hub, or a local copy. Column: `text`.

    Raises:
        UserError: FLORES+ lacks the language, or cannot be read.
    """
    task = "flores_bits_per_byte"
    config = _code(find_language(language), "flores", task)
    devtest = load_splits(dataset, config, ["devtest"], task=task)["devtest"]
    return {
        "devtest": only_columns(devtest, ["text"], name=f"{dataset} ({config})", task=task).select_columns(
            ["text"]
        )
    }


def opus_from_english(*, language: str, dataset: str, **_: Any) -> Splits:
    """Lines of OPUS-100 to be translated from English: `validation` for examples, `test` to be scored.

    Args:
        language: Any name or code.
        dataset: OPUS-100 on the hub, or a local copy. Column: `translation`, a mapping of two-letter codes.

    Returns:
        Splits with the columns of `_pairs`.

    Raises:
        UserError: OPUS-100 lacks the language or a part of it, or cannot be read.
    """
    return _opus(find_language(PIVOT), find_language(language), dataset, "opus_from_english")


def opus_to_english(*, language: str, dataset: str, **_: Any) -> Splits:
    """The same, to be translated into English."""
    return _opus(find_language(language), find_language(PIVOT), dataset, "opus_to_english")


def sib_topic(*, language: str, dataset: str, **_: Any) -> Splits:
    """Sentences of SIB-200 and the topic of each; `train` for examples, `test` to be scored.

    The examples stand in turns, one of each topic, so that as many as there are topics show each once.

    Args:
        language: Any name or code.
        dataset: SIB-200 on the hub, or a local copy. Columns: `text`, `category`.

    Returns:
        Splits with `text`, `choices` (`TOPICS`) and `label` (a place among these).

    Raises:
        UserError: SIB-200 lacks the language, or cannot be read.
    """
    task = "sib"
    config = _code(find_language(language), "flores200", task)
    loaded = load_splits(dataset, config, ["train", "test"], task=task)
    splits = {}
    for split in ("train", "test"):
        rows = only_columns(loaded[split], ["text", "category"], name=f"{dataset} ({config})", task=task)
        documents = [
            {"text": row["text"].strip(), "choices": TOPICS, "label": TOPICS.index(row["category"])}  # type: ignore[index]
            for row in rows
        ]
        splits[split] = Dataset.from_list(_in_turns(documents) if split == "train" else documents)
    return splits


def _in_turns(documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One document of each label after the other, each label's in their own order."""
    seen = [0] * len(TOPICS)
    turns = []
    for document in documents:
        turns.append((seen[document["label"]], document["label"]))
        seen[document["label"]] += 1
    return [documents[place] for place in sorted(range(len(documents)), key=turns.__getitem__)]


def flores_sentences(
    language: Language, dataset: str, splits: Sequence[str], *, task: str
) -> dict[str, dict[int, str]]:
    """Sentences of FLORES+ in one language: those of one number say the same in every language.

    Args:
        language: Which.
        dataset: FLORES+ on the hub, or a local copy. Column: `text`; `id` where the files are not bare lines.
        splits: `dev`, `devtest` or both.
        task: What an error begins with.

    Returns:
        Per split, number -> sentence.

    Raises:
        UserError: FLORES+ lacks the language, or cannot be read.
    """
    config = _code(language, "flores", task)
    loaded = load_splits(dataset, config, splits, task=task)
    found = {}
    for split in splits:
        rows = only_columns(loaded[split], ["text"], name=f"{dataset} ({config})", task=task)
        # Sentences meet by their id; files of bare lines by their place.
        numbers = rows["id"] if "id" in rows.column_names else range(len(rows))
        found[split] = dict(zip(numbers, rows["text"], strict=True))
    return found


def _flores(source: Language, target: Language, dataset: str, task: str) -> Splits:
    sides = [
        flores_sentences(language, dataset, ["dev", "devtest"], task=task) for language in (source, target)
    ]
    splits = {}
    for split in ("dev", "devtest"):
        texts = [side[split] for side in sides]
        if texts[0].keys() != texts[1].keys():
            raise UserError(
                f"task {task}: {split} of {dataset} is not the same sentences in {source.flores} ({len(texts[0])}) and "
                f"{target.flores} ({len(texts[1])}): get both from one version"
            )
        splits[split] = _pairs(source, target, [(texts[0][one], texts[1][one]) for one in sorted(texts[0])])
    return splits


def _opus(source: Language, target: Language, dataset: str, task: str) -> Splits:
    codes = [_code(language, "opus", task) for language in (source, target)]
    config = "-".join(sorted(codes))  # each pair has one name, in alphabetical order
    loaded = load_splits(dataset, config, ["validation", "test"], task=task)
    splits = {}
    for split in ("validation", "test"):
        rows = only_columns(loaded[split], ["translation"], name=f"{dataset} ({config})", task=task)[
            "translation"
        ]
        # A line break within a line would end the answer.
        texts = [[" ".join(row[code].split()) for code in codes] for row in rows]
        splits[split] = _pairs(source, target, [(text, translation) for text, translation in texts])
    return splits


def _pairs(source: Language, target: Language, texts: Sequence[tuple[str, str]]) -> Dataset:
    """Documents of a translation task: `source`, `target`, and the two languages' English names."""
    names = {"source_language": source.name, "target_language": target.name}
    return Dataset.from_list(
        [{"source": text.strip(), "target": translation.strip()} | names for text, translation in texts]
    )


def _code(language: Language, column: str, task: str) -> str:
    code = getattr(language, column)
    if code is None:
        raise UserError(
            f"task {task}: its data set has no {language.name} ({language.code}); leave it out of --languages"
        )
    return code
