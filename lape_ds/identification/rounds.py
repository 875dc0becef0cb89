"""What is to be counted next, and by whom: all that is left of the budget, or a doubling of the languages that are not stable.

On the first rank, between the files of counts and the ranks' shares. A round ends when its counts are in the languages' files;
which languages are stable is asked then, of these files alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lape_ds.identification.job import Job
from lape_ds.identification.units import Unit, divide, left_of, next_doubling, of_part
from lape_ds.neurons.stability import half_agreement


@dataclass(frozen=True)
class Plan:
    """The units of a round.

    Attributes:
        shares: Of each rank.
        with_sums: Languages of which sums of activations are counted.
    """

    shares: Sequence[Sequence[Unit]]
    with_sums: frozenset[str]

    def owner(self, language: str) -> int | None:
        """The rank that counts all that is counted of a language; None if there are several."""
        owners = self._owners[language]
        return owners[0] if len(owners) == 1 else None

    @cached_property
    def _owners(self) -> dict[str, list[int]]:
        """The ranks of each language, by one look at each unit: it is asked for every file."""
        owners: dict[str, dict[int, None]] = {}
        for rank, share in enumerate(self.shares):
            for unit in share:
                owners.setdefault(unit.language, {})[rank] = None
        return {language: list(ranks) for language, ranks in owners.items()}

    def message(self) -> dict[str, Any]:
        """As JSON."""
        shares = [[[unit.language, unit.start, unit.stop] for unit in share] for share in self.shares]
        return {"shares": shares, "with_sums": sorted(self.with_sums)}

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Plan:
        """From JSON."""
        shares = [[Unit(*unit) for unit in share] for share in message["shares"]]
        return cls(shares, frozenset(message["with_sums"]))


def next_plan(job: Job, num_ranks: int) -> Plan | None:
    """The next round; None if all is counted. Nobody may be counting meanwhile: what waits is added to the languages' files.

    Raises:
        UserError: A file of counts is damaged.
    """
    if job.recipe.identify.stop_when == "budget":
        job.files.end_round()
        return _plan(job, {language: text.num_blocks for language, text in job.texts.items()}, num_ranks)
    while True:
        begun = {language: end for language, end in job.files.begun_round().items() if language in job.texts}
        if begun and (plan := _plan(job, begun, num_ranks)):
            return plan
        job.files.end_round()
        _merge(job, job.texts)
        ends = _next_ends(job)
        if not ends:
            return None
        job.files.begin_round(ends)


def _plan(job: Job, ends: Mapping[str, int], num_ranks: int) -> Plan | None:
    """What is left up to these blocks; if nothing is, it is in the languages' files from now on."""
    section = job.recipe.identify
    left: list[Unit] = []
    with_sums: set[str] = set()
    for language, end in ends.items():
        text = job.texts[language]
        done = job.files.done(text)
        units = of_part(text.units(section.shard_tokens), section.part_of)
        left += left_of([unit for unit in units if unit.stop <= end], done.parts)
        if done.with_sums:
            with_sums.add(language)
    if left:
        return Plan(divide(left, num_ranks), frozenset(with_sums))
    _merge(job, ends)
    return None


def _merge(job: Job, languages: Iterable[str]) -> None:
    for language in languages:
        job.files.merge(job.texts[language])


def _next_ends(job: Job) -> dict[str, int]:
    """Of the languages that are not stable those with the smallest share of their budget, and its doubling."""
    counted = {language: job.files.done(text).num_blocks_in_file for language, text in job.texts.items()}
    following = {
        language: found
        for language, text in job.texts.items()
        if (found := next_doubling(text.num_blocks, counted[language])) is not None
    }
    if all(counted.values()):
        section = job.recipe.identify
        agreement = half_agreement(section, job.counts)
        for language in list(following):
            if agreement[language].is_stable(section.stable_at):
                del following[language]
    else:  # a language without counts has nothing to be compared by
        following = {language: found for language, found in following.items() if not counted[language]}
    least = min((found.number for found in following.values()), default=0)
    return {language: found.end for language, found in following.items() if found.number == least}
