"""The record of a selection's time and memory says what it must."""

from __future__ import annotations

import json
from pathlib import Path

from lape_ds.bench.select import METHODS, Size, bench_select, random_table
from lape_ds.neurons.lape import select

TINY = Size(languages=5, layers=3, neurons_per_layer=40)


def test_record(tmp_path: Path) -> None:
    record = bench_select(TINY, rounds=2, seed=0, out=tmp_path / "select.json")
    assert json.loads((tmp_path / "select.json").read_text()) == record
    assert list(record["methods"]) == list(METHODS)
    for found in record["methods"].values():
        assert 2**20 < found["held"] <= found["peak"] < 2**31
        assert found["seconds"]["median"] > 0
    # As many as a selection from the same counts in this process has; 5 % of 120 for each of five languages.
    expected = select(random_table(TINY, 0))
    assert record["methods"]["lape"]["selected"] == sum(len(neurons) for neurons in expected) > 0
    assert record["methods"]["probability"]["selected"] == 5 * 6
    table = (tmp_path / "select.md").read_text()
    assert "Selection: 5 languages, 3 x 40 neurons" in table
    assert table.count("| family_lape |") == 1
