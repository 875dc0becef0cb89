"""Where an atlas's model and texts come from, and under which terms: sentences of its card.

Beside the card. Licences that are told here were read on the pages that are named; of what is not known here the page is named
and no more is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lape_ds.neurons.counts import CountsHeader
from lape_ds.recipe import CLDRSource, FilesSource, HubSource, Recipe

# Source: the data sets' cards on the hub.
_TERMS = {
    "HuggingFaceFW/fineweb-2": "ODC-By 1.0, and Common Crawl's terms of use",
    "HuggingFaceFW/fineweb": "ODC-By 1.0, and Common Crawl's terms of use",
}


def model_lines(recipe: Recipe, model: Mapping[str, Any]) -> Iterator[str]:
    """About the model.

    Args:
        recipe: The atlas's.
        model: As run.json has it: `hub_id` (None of a local folder), `revision`.
    """
    if recipe.model.create is not None:
        yield (
            "The model was made by the recipe (`model.create`): a random Llama, trained on the texts below by `lape-ds pretrain`"
        )
    elif model["hub_id"] is not None:
        revision = f", revision `{model['revision']}`" if model["revision"] else ""
        yield (
            f"The model and its licence: https://huggingface.co/{model['hub_id']}{revision}; the set says nothing without "
            "the model, whose terms hold for its use"
        )
    else:
        yield "The model is a local folder; its licence is not known here"


def commits_read(recipe: Recipe) -> dict[str, list[str]]:
    """The hub's commits that each language's counted text was read at; none where it is not of the hub or was packed elsewhere.

    Raises:
        UserError: A file of counts is damaged.
    """
    packed = recipe.corpus.cache_dir or recipe.output_dir / "corpus"
    found: dict[str, list[str]] = {}
    for code in recipe.languages.identify:
        parts = CountsHeader.read(recipe.identify_dir / "counts" / f"{code}.safetensors").parts
        commits: set[str] = set()
        for fingerprint in {part.corpus_fingerprint for part in parts}:
            path = packed / code / fingerprint / "corpus.json"
            identity = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            # A local folder in a data set's place has its files here.
            commits.update(re.findall(r'"([0-9a-f]{40})"', json.dumps(identity.get("commits"))))
        found[code] = sorted(commits)
    return found


def source_lines(recipe: Recipe, commits: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """One line for each source of text, with its languages where there are several.

    Args:
        recipe: The atlas's.
        commits: Of `commits_read`.
    """
    by_source: dict[str, list[str]] = {}
    for code in recipe.languages.identify:
        source = recipe.corpus.source_of(code)
        told = _told(source, commits[code]) + (" (romanised letter by letter)" if source.romanise else "")
        by_source.setdefault(told, []).append(code)
    for told, codes in by_source.items():
        yield told if len(by_source) == 1 else f"{told}: {', '.join(codes)}"


def _told(source: FilesSource | HubSource | CLDRSource, commits: Sequence[str]) -> str:
    if isinstance(source, CLDRSource):
        return "Text: records of Unicode CLDR, written by babel (Unicode License V3, https://www.unicode.org/license.txt)"
    if isinstance(source, HubSource):
        terms = _TERMS.get(source.dataset, "its page says under which terms")
        revision = f", revision `{source.revision}`" if source.revision else ""
        read = f", read at commit {' and '.join(f'`{commit}`' for commit in commits)}" if commits else ""
        return f"Text: https://huggingface.co/datasets/{source.dataset}{revision}{read} ({terms})"
    return "Text: local files, whose terms are not known here"
