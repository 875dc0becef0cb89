"""Places in files, formulas over them, pictures put into the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.report.numbers import Number, count, duration, general, mean, percent, probability, short, signed
from lape_ds.report.pictures import inline_picture
from lape_ds.report.sources import Reader
from tests.report.tracing import compute, look_up


def test_a_place_is_found_again_by_its_source(tmp_path: Path) -> None:
    content = {"a/b": [{"~x": 1.5}, {"~x": 2.5, "y": 3}], "{c} d": {"é": None}}
    path = tmp_path / "50 % #" / "file.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    place = Reader(tmp_path).json(path)
    assert place is not None
    for found in (place["a/b"][1]["y"], place["a/b"][0]["~x"], place["{c} d"]["é"]):
        assert list(look_up(found.source, tmp_path)) == [found.content]
    assert place.get("{c} d", "é") is None
    assert place.get("a/b", 0, "y") is None
    every = place["a/b"].every("y")
    assert every.contents == list(look_up(every.source, tmp_path)) == [3]


def test_lines_are_numbered_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "loss": 4.0}\n{"ste')
    lines = Reader(tmp_path).lines(path)
    assert lines is not None
    assert lines.names() == ["1", "2"]
    assert lines["2"]["loss"].source == "metrics.jsonl#2/loss"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is damaged"):
        Reader(tmp_path).lines(path)


def test_formulas_give_the_values(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": [3.0, 8.0, 0.7], "y": 0.3}')
    place = Reader(tmp_path).json(tmp_path / "a.json")
    assert place is not None
    x, y = [Number.at(one) for one in place["x"]], Number.at(place["y"])
    for number in (
        x[0] - x[1],
        (x[0] - x[1]) - (x[2] - y),
        (x[0] - x[1]) / (x[2] + y),
        -(x[0] - y) - x[1],
        mean([x[0] - y, x[1] - y]) / y,
        mean(x) - mean([y, y]),
    ):
        assert compute(number.formula, tmp_path) == pytest.approx(number.value, rel=1e-14)


@pytest.mark.parametrize(
    ("shown", "text", "unit"),
    [
        (signed(Number(-0.1234, "x")), "−0.123", ""),
        (signed(Number(-0.0001, "x")), "0.000", ""),
        (signed(Number(0.25, "x"), 1), "+0.2", ""),
        (count(Number(1234567, "x")), "1,234,567", ""),
        (percent(Number(0.01384, "x")), "1.38", "%"),
        (general(Number(1e-5, "x")), "1e−5", ""),
        (general(Number(0.0003, "x")), "0.0003", ""),
        (probability(Number(3e-12, "x")), "3e−12", ""),
        (probability(Number(0.04, "x")), "0.0400", ""),
        (short(Number(1.02e9, "x"), "B"), "1.02", "GB"),
        (short(Number(999.6, "x"), "tokens/s"), "1", "ktokens/s"),
        (duration(Number(119.0, "x")), "119.0", "s"),
        (duration(Number(200.0, "x")), "3.3", "min"),
        (duration(Number(260_000.0, "x")), "3.0", "d"),
    ],
)
def test_numbers_as_they_are_shown(shown: object, text: str, unit: str) -> None:
    assert (shown.text, shown.unit) == (text, unit)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_picture_takes_the_colours_of_the_page_and_keeps_to_itself() -> None:
    svg = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
 width="72pt" height="36pt" viewBox="0 0 72 36"><metadata>2026</metadata>
 <defs><style type="text/css">*{stroke-linejoin: round}</style><path id="m1" style="stroke: #000000"/></defs>
 <g clip-path="url(#m1)"><use xlink:href="#m1" style="fill: #0072b2; stroke: #ffffff"/>
 <text style="fill: #767676">a &lt; b</text></g>
</svg>"""
    drawn = inline_picture(svg, name="one", title="A & B", description="What it shows.")
    assert (
        'viewBox="0 0 72 36" style="max-width: 96px" role="img" aria-labelledby="one-title one-description"'
        in drawn
    )
    assert '<title id="one-title">A &amp; B</title><desc id="one-description">What it shows.</desc>' in drawn
    assert 'id="one-m1" style="stroke: color-mix(in srgb, currentColor 100%, var(--page))"' in drawn
    assert (
        'href="#one-m1" style="fill: #0072b2; stroke: color-mix(in srgb, currentColor 0%, var(--page))"'
        in drawn
    )
    assert 'clip-path="url(#one-m1)"' in drawn
    assert '<text style="fill: var(--soft)">a &lt; b</text>' in drawn
    assert "<style" not in drawn
    assert "metadata" not in drawn
    assert "xmlns" not in drawn
