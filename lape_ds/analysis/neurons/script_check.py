"""Does a language's set follow the language or its script? Its set against that of its romanised copy.

After two identifications that differ in one language's text: once as it is written, once in Latin letters (`romanise: true`
of its source). Where the set follows the language, both are nearly one; where it follows the script, the copy's set is nearer
to those of languages in Latin script.

Source of the question: arXiv 2604.05090.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.neurons.neuron_set import NeuronSet


@dataclass(frozen=True)
class ScriptCheck:
    """Jaccard similarities of one language's two sets.

    Attributes:
        language: Its code.
        script: In which it is written.
        num_native: Neurons of its set.
        num_copy: Neurons of its romanised copy's set.
        copy: Similarity of the two.
        same_script: By language of the same script: of its set with that language's. Empty where there is none.
        native_latin: By language in Latin script: of its set with that language's.
        copy_latin: By language in Latin script: of the copy's set with that language's, both of the copy's identification.
    """

    language: str
    script: str
    num_native: int
    num_copy: int
    copy: float
    same_script: dict[str, float]
    native_latin: dict[str, float]
    copy_latin: dict[str, float]

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"{self.language}: {self.num_native:,} neurons as written, {self.num_copy:,} romanised"
        yield f"with its romanised copy            {self.copy:.3f}"
        for what, similar in (
            (f"with other languages in {self.script}", self.same_script),
            ("with languages in Latn", self.native_latin),
            ("copy with languages in Latn", self.copy_latin),
        ):
            yield f"{what:34} {_spread(similar)}"
        yield self.reading()

    def reading(self) -> str:
        """What the figures say, in words."""
        if not self.num_native or not self.num_copy:
            return "no reading: one of the two sets is empty"
        neighbours = [*self.same_script.values(), *self.copy_latin.values()]
        if not neighbours:
            return "no reading: the sets hold no other language of either script"
        if self.copy > max(neighbours):
            return "the set follows the language: its copy in other letters is nearer than any language in the same letters"
        if self.copy > fmean(neighbours):
            return "both: its copy in other letters is nearer than most languages in the same letters, but not than all"
        return "the set follows the script: languages in the same letters are nearer than its copy in others, on average"

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "reading": self.reading()}


def check_script(native: NeuronSet, romanised: NeuronSet, language: str) -> ScriptCheck:
    """Compares a language's set with that of its romanised copy, and with those of other languages.

    Args:
        native: Identified on text as it is written.
        romanised: Identified on the same languages' text, of which this one's was romanised.
        language: Canonical code.

    Raises:
        UserError: The language is in Latin script, one of the sets lacks it, or models, methods or languages differ.
    """
    script = find_language(language).script
    if script == "Latn":
        raise UserError(f"--language {language}: is in Latin script already; name one that is not")
    _check_alike(native, romanised)
    others = [code for code in native.languages if code != language]
    latin = [code for code in others if find_language(code).script == "Latn"]
    both = replace(
        native,
        indices={"as written": native.neurons(language), "copy": romanised.neurons(language)},
        confidence=None,
    )
    return ScriptCheck(
        language=language,
        script=script,
        num_native=native.num_neurons(language),
        num_copy=romanised.num_neurons(language),
        copy=both.jaccard("as written", "copy"),
        same_script={
            code: native.jaccard(language, code) for code in others if find_language(code).script == script
        },
        native_latin={code: native.jaccard(language, code) for code in latin},
        copy_latin={code: romanised.jaccard(language, code) for code in latin},
    )


def _check_alike(native: NeuronSet, romanised: NeuronSet) -> None:
    for name in ("num_layers", "neurons_per_layer", "model_fingerprint", "method", "languages"):
        ours, theirs = getattr(native, name), getattr(romanised, name)
        if ours != theirs:
            raise UserError(
                f"the two sets differ in {name} ({ours} and {theirs}); identify twice with one recipe, the second time with "
                "`romanise: true` for this language's source and another output_dir"
            )


def _spread(similar: dict[str, float]) -> str:
    if not similar:
        return "–"
    nearest = max(similar, key=lambda code: similar[code])
    return f"{fmean(similar.values()):.3f} on average of {len(similar)}, {nearest} {similar[nearest]:.3f} nearest"
