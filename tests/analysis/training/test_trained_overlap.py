"""Whose neurons a run trained, against sets counted by hand."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from lape_ds.analysis.analyze import analyze
from lape_ds.analysis.training.results import analysis_dir
from lape_ds.analysis.training.run import open_runs
from lape_ds.analysis.training.trained_overlap import TrainedOverlap, measure_trained_overlap
from lape_ds.errors import UserError
from tests.analysis.training.made_runs import make_run, read_analysis
from tests.conftest import NEURONS


def test_against_sets_counted_by_hand(tiny_recipe: Path) -> None:
    """Maltese (0, 1), (0, 30), (2, 46); English (0, 1), (1, 2); Georgian none; of 3 x 47 neurons."""
    assert [len(pairs) for pairs in NEURONS.values()] == [3, 2, 0]
    run_dir = make_run(tiny_recipe, "overlap/one")
    analyze([run_dir], only=["overlap"])
    (content,) = read_analysis(analysis_dir(run_dir), "overlap")
    identified = tiny_recipe.parent / "neurons.safetensors"
    assert content["inputs"] == [
        {"path": name, "step": None, "digest": sha256(path.read_bytes()).hexdigest()}
        for name, path in (
            ("neurons.safetensors", run_dir / "neurons.safetensors"),
            (str(identified), identified),
        )
    ]
    found = TrainedOverlap.from_json(content)
    assert (found.num_neurons, found.num_model_neurons, found.per_layer, found.exclusive) == (
        3,
        141,
        (2, 0, 1),
        2,
    )
    by_code = {one.code: one for one in found.languages}
    maltese, english, georgian = (by_code[code] for code in ("mlt_Latn", "eng_Latn", "kat_Geor"))
    assert (maltese.shared, maltese.share_of_trained, maltese.jaccard) == (3, 1, 1)
    assert (english.neurons, english.shared, english.jaccard) == (2, 1, 1 / 4)
    assert english.share_of_trained == pytest.approx(1 / 3)
    assert english.expected == pytest.approx(3 * 2 / 141)
    assert (georgian.shared, georgian.jaccard, georgian.expected) == (0, 0, 0)
    assert ">eng_Latn</text>" in (analysis_dir(run_dir) / "overlap.svg").read_text(encoding="utf-8")


def test_whole_weights_have_none(tiny_recipe: Path) -> None:
    run_dir = make_run(tiny_recipe, "overlap/full", method="full")
    with pytest.raises(UserError, match=r"train\.method=full, which trains no single neurons"):
        measure_trained_overlap(open_runs([run_dir])[0])
