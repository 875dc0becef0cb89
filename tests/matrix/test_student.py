"""Student's t against printed tables and against its definition, integrated."""

from __future__ import annotations

import math

import pytest

from lape_ds.matrix.student import mean_interval, quantile, two_sided_p


# Source: Student's t table, 97.5 %, as in any textbook (Fisher and Yates, Statistical Tables, table III).
@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (11, 2.201), (30, 2.042)]
)
def test_quantiles_of_the_printed_table(degrees: int, expected: float) -> None:
    assert quantile(degrees) == pytest.approx(expected, abs=5e-4)
    assert two_sided_p(quantile(degrees), degrees) == pytest.approx(0.05)


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize("t", [0.0, 0.7, 2.5])
def test_p_is_the_area_under_the_density(degrees: int, t: float) -> None:
    factor = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    width = 1e-3
    middles = [(number + 0.5) * width for number in range(round(t / width))]
    inside = 2 * sum(factor * (1 + x * x / degrees) ** (-(degrees + 1) / 2) * width for x in middles)
    assert two_sided_p(t, degrees) == pytest.approx(1 - inside, abs=1e-5)


def test_mean_of_three_by_hand() -> None:
    # mean 2, standard deviation 1, standard error 1/sqrt(3), t 3.464 of 2 degrees: p = 1 - t / sqrt(2 + t^2) = 0.0742
    mean, half_width, p = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half_width == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert p == pytest.approx(1 - math.sqrt(12 / 14))


def test_what_has_no_interval() -> None:
    assert mean_interval([0.5]) == (0.5, None, None)
    assert mean_interval([0.5, 0.5]) == (0.5, None, None)
