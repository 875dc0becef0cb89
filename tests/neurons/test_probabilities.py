"""Exact percentiles of values in pieces, against torch's own `kthvalue` of all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lape_ds.neurons import probabilities
from lape_ds.neurons.probabilities import Probabilities, kth_smallest, percentiles


def drawn(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(5000, generator=generator, dtype=torch.float64)
    return {
        "uniform": values,
        "tied": (values * 7).floor() / 7,
        "mostly zero": values * (values > 0.9),
        "negative zero": -0.0 * values,
        "alike": 0.5 + values * 1e-14,  # differ in the last of the four digits
        "tiny": values * 1e-310,  # not normalised
    }[kind]


@pytest.mark.parametrize("gathered", [1, 100, 2**24])
@pytest.mark.parametrize("kind", ["uniform", "tied", "mostly zero", "negative zero", "alike", "tiny"])
def test_equals_kthvalue(kind: str, gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of values may be gathered: with 1, all four digits are learnt by histograms."""
    monkeypatch.setattr(probabilities, "_GATHERED", gathered)
    values = drawn(kind)
    for k in (1, 2, 2500, 4750, 4999, 5000):
        found = kth_smallest(lambda: iter(values.split(1024)), k)
        assert found == float(values.kthvalue(k).values)


def test_percentiles_of_pieces_and_of_a_tensor() -> None:
    values = drawn("uniform")
    rates = (0.95, 0.5, 0.95, 1.0, 1e-9)
    expected = [float(values.kthvalue(max(1, round(5000 * rate))).values) for rate in rates]
    assert percentiles(values.reshape(5, 1000), *rates) == expected
    assert percentiles(lambda: iter(values.split(999)), *rates) == expected


def test_table_of_counts() -> None:
    table = Probabilities((torch.tensor([0, 1, 2, 3]), torch.tensor([5, 0, 5, 1])), (3, 5), num_layers=2)
    assert (table.num_neurons, table.neurons_per_layer) == (4, 2)
    assert [probs_N.tolist() for probs_N in table.languages()] == [[0, 1 / 3, 2 / 3, 1], [1, 0, 1, 0.2]]
    assert table.of_neurons(torch.tensor([3, 1])).tolist() == [[1, 1 / 3], [0.2, 0]]
