"""Parallel sentences for the alignment: the same ones in every language, and none that was trained on.

Before the measuring. They come from where the recipe's text is of a kind with: CLDR records beyond those of any training, for a
recipe of CLDR; the `dev` sentences of FLORES+ for any other; or the user's own files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lape_ds.analysis.alignment.numbers import ParallelRequest
from lape_ds.corpora.cldr import sample_records
from lape_ds.corpora.files import read_file
from lape_ds.errors import NoText, UserError
from lape_ds.evaluation.cldr_documents import FIRST_RECORD, SEED
from lape_ds.evaluation.data_sources import is_local
from lape_ds.evaluation.hub_access import ask_hub
from lape_ds.evaluation.public_documents import FLORES, flores_sentences
from lape_ds.languages import Language, find_language
from lape_ds.recipe import FilesSource, Recipe

_SPLIT = "dev"  # suites score devtest


@dataclass(frozen=True)
class ParallelText:
    """Sentences that say the same.

    Attributes:
        source: Where they are from, for people.
        texts: By language, all equally many; the i-th says the same in each.
        left_out: Languages that were asked for and have none: why.
    """

    source: str
    texts: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str]

    @property
    def num_sentences(self) -> int:
        """In each language."""
        return len(next(iter(self.texts.values())))


def parallel_text(
    recipe: Recipe, own: Sequence[str], others: Sequence[str], request: ParallelRequest
) -> ParallelText:
    """Reads the sentences of some languages; of more than are wanted, some from the whole of them, evenly.

    A sentence that stands twice in any of the languages is left out of all: nothing could tell which of the two is meant.

    Args:
        recipe: Of the run.
        own: Codes of the trained languages.
        others: Codes of those to compare them with.
        request: Which sentences.

    Raises:
        UserError: A trained language has none, or none of the others, or they have fewer than two in common.
    """
    source, read = _reader(recipe, request)
    found: dict[str, Mapping[int, str]] = {}
    left_out: dict[str, str] = {}
    for code in dict.fromkeys([*own, *others]):
        try:
            found[code] = read(find_language(code))
        except NoText as error:
            left_out[code] = str(error)
    for code in own:
        if code in left_out:
            raise UserError(f"no parallel sentences of {code}, which was trained: {left_out[code]}")
    if not set(found) - set(own):
        reasons = "; ".join(dict.fromkeys(left_out.values())) or "the run knows of no other language"
        raise UserError(f"no language to compare {', '.join(own)} with: {reasons}")
    numbers = _distinct(found)
    if len(numbers) < 2:
        raise UserError(
            f"{source}: {', '.join(found)} have {len(numbers)} sentences in common; give files whose lines are the same sentences"
        )
    wanted = min(request.num_sentences, len(numbers))
    chosen = [numbers[place * len(numbers) // wanted] for place in range(wanted)]
    texts = {code: tuple(sentences[number] for number in chosen) for code, sentences in found.items()}
    return ParallelText(source, texts, left_out)


def _reader(recipe: Recipe, request: ParallelRequest) -> tuple[str, Callable[[Language], Mapping[int, str]]]:
    """Where sentences are from, and how those of a language are read; raises NoText where it has none."""
    if request.path is not None:
        path = request.path
        return path, lambda language: _own_sentences(path, language)
    if recipe.corpus.source.kind == "cldr":
        wanted = request.num_sentences

        def records(language: Language) -> Mapping[int, str]:
            found = sample_records(language, count=wanted, seed=SEED, first=FIRST_RECORD)
            return {record.id: record.text for record in found}

        return "CLDR records that no training has seen", records
    dataset = recipe.eval.datasets.get(FLORES, FLORES)
    if not is_local(dataset):
        ask_hub()

    def flores(language: Language) -> Mapping[int, str]:
        if language.flores is None:
            raise NoText(f"FLORES+ has no {language.name}")
        return flores_sentences(language, dataset, [_SPLIT], task="alignment")[_SPLIT]

    return f"FLORES+ {_SPLIT}", flores


def _own_sentences(path: str, language: Language) -> Mapping[int, str]:
    """Line number -> sentence, but for blank lines."""
    if path == language.fill(path):
        raise UserError(
            f"--parallel {path}: the same file for every language; put a placeholder into its name, e.g. text/{{code}}.txt"
        )
    file = Path(language.fill(path)).expanduser()
    if not file.is_file():
        raise NoText(f"--parallel: no such file {file}")
    found = {}
    for number, item in enumerate(read_file(file, FilesSource(kind="files", path=path))):
        if item.text is None:
            raise UserError(f"--parallel: {item.problem}; every language's lines must be the same sentences")
        if item.text.strip():
            found[number] = item.text.strip()
    return found


def _distinct(found: Mapping[str, Mapping[int, str]]) -> list[int]:
    """Numbers of the sentences that every language has, each but once."""
    shared = set.intersection(*(set(sentences) for sentences in found.values()))
    seen: dict[str, set[str]] = {code: set() for code in found}
    numbers = []
    for number in sorted(shared):
        if all(sentences[number] not in seen[code] for code, sentences in found.items()):
            numbers.append(number)
            for code, sentences in found.items():
                seen[code].add(sentences[number])
    return numbers
