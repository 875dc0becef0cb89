"""Standard errors against resampling, and results that come back from disk as they went."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy
import pytest

from lape_ds.errors import UserError
from lape_ds.evaluation.results import Score, TaskResult, read_result, standard_error, write_result

RESULT = TaskResult(
    task="cldr_topic_mlt_Latn",
    language="mlt_Latn",
    num_documents=2,
    scores={"acc": Score(0.5, 0.5), "f1": Score(0.25, None)},
    requests_sha256="ab",
    settings={"limit": None, "versions": {"lm-eval": "0.4.13"}},
    title="topic",
    metric="acc",
    direction="higher",
    random_baseline=0.25,
)


def test_error_of_a_mean_is_numpys():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    expected = numpy.std(values, ddof=1) / math.sqrt(len(values))
    assert standard_error("acc", values) == pytest.approx(expected, rel=1e-12)


def test_error_of_bits_per_byte_is_the_bootstraps():
    rng = numpy.random.default_rng(0)
    sizes = rng.integers(50, 400, size=200)
    nats = -sizes * rng.normal(1.2, 0.3, size=200)
    drawn = rng.integers(0, 200, size=(4000, 200))
    ratios = -nats[drawn].sum(1) / sizes[drawn].sum(1) / math.log(2)
    found = standard_error("bits_per_byte", list(zip(nats.tolist(), sizes.tolist(), strict=True)))
    assert found == pytest.approx(ratios.std(), rel=0.05)  # 4000 draws know it to about 1 %


def test_no_error_where_there_is_none():
    assert standard_error("acc", [1.0]) is None
    assert standard_error("f1", [(1, 0), (0, 0)]) is None


def test_round_trip(tmp_path: Path):
    write_result(tmp_path, RESULT, [{"acc": numpy.float64(1.0), "doc": {"text": "għ"}}])
    assert read_result(tmp_path, RESULT.task) == RESULT
    sample = json.loads((tmp_path / "samples" / f"{RESULT.task}.jsonl").read_text(encoding="utf-8"))
    assert sample == {"acc": 1.0, "doc": {"text": "għ"}}
    assert not list(tmp_path.rglob("*.tmp"))
    assert read_result(tmp_path, "another") is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_a_broken_file_is_named(tmp_path: Path, content: str):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=r"t\.json is not an evaluation result .*delete it"):
        read_result(tmp_path, "t")
