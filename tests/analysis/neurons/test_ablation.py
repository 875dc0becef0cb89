"""An ablation as table, JSON and picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from lape_ds.analysis.neurons.ablation import report_ablation
from lape_ds.analysis.neurons.ablation_pictures import draw_ablation
from lape_ds.analysis.neurons.ablation_tables import lines, short_names, signed
from lape_ds.analysis.neurons.specificity import Specificity
from tests.analysis.neurons.ablations import random_ablation

TWELVE = "mlt_Latn afr_Latn isl_Latn cym_Latn mkd_Cyrl lvs_Latn lit_Latn slv_Latn slk_Latn ekk_Latn kat_Geor npi_Deva".split()
TWENTY_FOUR = [
    *TWELVE,
    *"eng_Latn deu_Latn fra_Latn spa_Latn rus_Cyrl cmn_Hans tur_Latn fin_Latn srp_Cyrl srp_Latn hin_Deva heb_Hebr".split(),
]


def printed(codes: Sequence[str], **settings: Any) -> list[str]:
    ablation = random_ablation(codes, **settings)
    return list(lines(ablation, Specificity.of(ablation, num_resamples=500)))


def test_table_of_ten_fits_a_terminal() -> None:
    ten = TWELVE[2:]
    out = printed(ten, without=["lit_Latn"])
    assert max(map(len, out)) <= 80
    matrix = out[out.index("") + 1 :]
    heading = matrix[0].split()
    assert heading[0] == "off"
    assert sorted(heading[1:]) == sorted(code[:3] for code in ten)
    assert heading.index("lit") == heading.index("lvs") + 1  # the Baltic ones beside each other
    assert len(matrix[: matrix.index("")]) == 1 + 9, "a row for each language with neurons"
    assert "without neurons, so measured only: lit_Latn" in out
    assert not any("±?" in line for line in out)


def test_of_more_languages_the_summary_is_shown() -> None:
    out = printed(TWENTY_FOUR)
    assert max(map(len, out)) <= 80
    assert sum(line.startswith("off") for line in out) == 1, "no matrix"
    summary = [line for line in out if line.split(" ")[0] in TWENTY_FOUR]
    assert len(summary) == 24
    assert any(line.startswith("LAPE is above random") for line in out)


def test_summary_tells_the_scores() -> None:
    ablation = random_ablation(TWELVE)
    scores = Specificity.of(ablation, num_resamples=500)
    line = next(line for line in reversed(list(lines(ablation, scores))) if line.startswith("kat_Geor"))
    mine = scores.by_language["identified"]["kat_Geor"]
    assert line.split()[1:5] == [
        "2",
        f"{ablation.base_bits('kat_Geor'):.3f}",
        signed(scores.own("identified", "kat_Geor")),
        signed(scores.others("identified", "kat_Geor")),
    ]
    assert mine.half_width is not None
    assert f"{signed(mine.value)} ±{mine.half_width:.4f}".replace("±0.", "±.") in line


@pytest.mark.parametrize(
    ("bits", "text"),
    [(0.0123, "+.0123"), (-0.5, "-.5000"), (1.25, "+1.250"), (0.0, "+.0000"), (-12.0, "-12.000")],
)
def test_signed(bits: float, text: str) -> None:
    assert signed(bits) == text


def test_scripts_are_named_where_they_must_be() -> None:
    assert short_names(["srp_Cyrl", "srp_Latn", "mlt_Latn"]) == ["srp_Cyrl", "srp_Latn", "mlt"]


def panels(figure: Figure) -> list[np.ndarray]:
    return [
        np.ma.filled(np.ma.asarray(axes.images[0].get_array()), np.nan) for axes in figure.axes if axes.images
    ]


@pytest.mark.parametrize("number", [6, 18, 24])
def test_picture(number: int) -> None:
    """Three matrices on one scale, what is off in rows, relatives beside each other; grey where there are no neurons."""
    codes = TWENTY_FOUR[:number]
    ablation = random_ablation(codes, without=[codes[3]])
    scores = Specificity.of(ablation, num_resamples=100)
    figure = draw_ablation(ablation, scores)
    assert len(panels(figure)) == 3
    drawn = [axes for axes in figure.axes if axes.images]
    names = [label.get_text() for label in drawn[0].get_yticklabels()]
    assert sorted(names) == sorted(codes)
    if number >= 18:
        assert sorted(names.index(code) for code in ("slv_Latn", "slk_Latn", "mkd_Cyrl", "rus_Cyrl")) == list(
            range(min(names.index("mkd_Cyrl"), names.index("slv_Latn")), names.index("rus_Cyrl") + 1)
        )
    for kind, matrix in zip(("identified", "random", "most_active"), panels(figure), strict=True):
        for row, code in enumerate(names):
            expected = [scores.changes[kind].get(code, {}).get(other, np.nan) for other in names]
            np.testing.assert_allclose(matrix[row], expected)
    assert len({(axes.images[0].norm.vmin, axes.images[0].norm.vmax) for axes in drawn}) == 1
    assert (len(drawn[0].texts) > 0) == (number <= 12), "figures where there is room"


def test_report_is_whole_and_strict_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an interval is not known it is null: NaN is no JSON."""
    ablation = random_ablation(TWELVE[:3], num_documents=5)
    report_ablation(ablation, tmp_path, picture=tmp_path / "more.svg")
    content = json.loads((tmp_path / "ablation.json").read_text(), parse_constant=pytest.fail)
    assert content["specificity"]["identified"]["overall"]["half_width"] is None
    assert len(content["sets"]) == 3 * 4
    for one in content["sets"]:
        assert set(one["change"]) == set(TWELVE[:3])
    assert {path.name for path in tmp_path.iterdir()} == {"ablation.json", "ablation.png", "more.svg"}
    out = capsys.readouterr().out
    assert " ±? " in out
    assert "±?: no interval, since there are too few documents or languages to tell" in out
