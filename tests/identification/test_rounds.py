"""Which rounds `stop_when: stable` counts, when asking which languages are stable is answered by the test."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lape_ds.errors import UserError
from lape_ds.identification import rounds, share
from lape_ds.identification.files import CountFiles
from lape_ds.identification.rounds import Plan
from lape_ds.identification.stage import identify
from lape_ds.identification.units import Unit, divide, doublings, left_of, of_part
from lape_ds.neurons.counts import CountedBlocks, Counts, CountsHeader
from lape_ds.neurons.stability import Agreement
from lape_ds.recipe import Recipe
from tests.identification.making import CODES, counts_of, make_recipe

NEEDED = {CODES[0]: 0, CODES[1]: 20, CODES[2]: 10_000}  # blocks after which a language is stable


@pytest.fixture(autouse=True)
def answered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """What was counted each time that it was asked."""
    asked: list[dict[str, int]] = []

    def answer(section: Any, load: Any) -> dict[str, Agreement]:
        blocks = {one.settings.language: one.parts[0].stop for one in load()}
        asked.append(blocks)
        return {code: Agreement(1.0 if blocks[code] >= NEEDED[code] else 0.0, 3) for code in blocks}

    monkeypatch.setattr(rounds, "half_agreement", answer)
    return asked


def counted_blocks(recipe: Recipe) -> dict[str, int]:
    files = CountFiles(recipe.identify_dir, with_sums=False)
    parts = {code: CountsHeader.read(files.of_language(code)).parts for code in CODES}
    assert all((len(found), found[0].start) == (1, 0) for found in parts.values())
    return {code: found[0].stop for code, found in parts.items()}


def test_languages_end_when_they_are_stable(
    tmp_path: Path, model_folder: Path, answered: list[dict[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(tmp_path, model_folder, identify={"stop_when": "stable"})
    identify(recipe)
    whole = counted_blocks(recipe)[CODES[2]]
    ends = doublings(whole)
    assert len(ends) == 7
    assert [blocks[CODES[2]] for blocks in answered] == ends
    assert counted_blocks(recipe)[CODES[0]] == ends[0]
    assert counted_blocks(recipe)[CODES[1]] == next(end for end in ends if end >= 20)
    assert "saved" in capsys.readouterr().out


def test_interrupted_rounds_come_to_the_same(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at every third unit: no language goes on that would have ended, none ends that would have gone on."""
    section = {"stop_when": "stable", "shard_tokens": 512}
    undisturbed = make_recipe(tmp_path / "a", model_folder, identify=section)
    identify(undisturbed)
    recipe = make_recipe(tmp_path / "b", model_folder, identify=section)
    count, left = share.count_activations, [0]

    def count_some(*args: Any, **given: Any) -> Counts:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return count(*args, **given)

    monkeypatch.setattr(share, "count_activations", count_some)
    monkeypatch.setattr(share, "SECONDS_BETWEEN_WRITES", 0.0)
    for _ in range(100):
        left[0] = 3
        try:
            identify(recipe)
            break
        except KeyboardInterrupt:
            continue
    assert counts_of(recipe) == counts_of(undisturbed)


def test_out_of_memory_before_anything_is_counted_binds_to_nothing(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shorter context that is advised is taken in the same folder, and the round begins anew in its blocks."""
    section: dict[str, Any] = {"stop_when": "stable"}

    def fail(*_: Any, **__: Any) -> Counts:
        raise torch.OutOfMemoryError("CUDA out of memory")

    recipe, count = make_recipe(tmp_path, model_folder, identify=section), share.count_activations
    monkeypatch.setattr(share, "count_activations", fail)
    with pytest.raises(UserError, match=r"context_length shorter, or"):
        identify(recipe)
    monkeypatch.setattr(share, "count_activations", count)
    shorter = make_recipe(tmp_path, model_folder, identify=section | {"context_length": 16})
    identify(shorter)
    fresh = make_recipe(tmp_path / "fresh", model_folder, identify=section | {"context_length": 16})
    identify(fresh)
    assert counts_of(shorter) == counts_of(fresh)
    assert not list(shorter.identify_dir.rglob(".*"))


def test_units_cover_everything_once_whatever_is_done() -> None:
    units = [Unit("mlt_Latn", start, stop) for start, stop in ((0, 1), (1, 2), (2, 4), (4, 8), (8, 13))]
    every = set(range(13))
    for start in range(13):
        for stop in range(start + 1, 14):
            left = left_of(units, [CountedBlocks("c", start, stop, 1)])
            blocks = [block for unit in left for block in range(unit.start, unit.stop)]
            assert sorted(blocks) == sorted(every - set(range(start, stop)))
    shares = divide(units, 3)
    assert [unit for share_ in shares for unit in share_] == units
    parts = [of_part(units, (number, 4)) for number in range(4)]
    assert sorted(unit for part in parts for unit in part) == units


def test_who_counts_all_of_a_language() -> None:
    """Asked for each of thirty thousand files: a look through all units each time would take minutes."""
    units = [Unit(f"language-{number // 3}", number % 3, number % 3 + 1) for number in range(30_000)]
    plan = Plan(divide(units, 7), frozenset())
    started = time.process_time()
    found = {unit.language: plan.owner(unit.language) for unit in units}
    assert time.process_time() - started < 2
    shared = {language for language, owner in found.items() if owner is None}
    assert 0 < len(shared) <= 6, "a language is cut only where a rank's share ends"
    for rank, units_of_rank in enumerate(plan.shares):
        assert {unit.language for unit in units_of_rank} - shared == {
            language for language, owner in found.items() if owner == rank
        }
