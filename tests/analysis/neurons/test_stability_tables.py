"""`lape-ds neurons stability`: text of few and of many languages, JSON, picture; what `neurons show` says of confidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lape_ds.analysis.neurons.stability_tables import least_stable, stability_lines
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.neurons.selection import select_neurons
from lape_ds.neurons.stability import measure_stability
from lape_ds.recipe import IdentifySection
from tests.analysis.neurons.test_overlap import run
from tests.neurons.test_selection import CODES, KNOBS, all_counts

SECTION = IdentifySection(**KNOBS, bootstrap_resamples=4)  # pyright: ignore[reportArgumentType]


def test_text() -> None:
    found = measure_stability(SECTION, all_counts, seed=0)
    lines = list(stability_lines(found))
    assert [line.split()[0] for line in lines[2:6]] == CODES
    first = found.languages[0]
    assert f"{first.curve[-1].num_tokens:,}" in lines[2]
    assert f"{first.half.jaccard:.3f}".replace("0.", ".").replace("1.000", "1.00") in lines[2]
    assert all(len(line) <= 80 for line in lines[1:])
    many = replace(found, languages=found.languages * 6)
    lines = list(stability_lines(many))
    assert lines[2].startswith("median")
    assert lines[3] == "the 20 least stable of 24:"
    assert len(lines) == 4 + 20 + 3
    agreements = [one.half.jaccard for one in least_stable(many, 24)]
    assert agreements == sorted(agreements)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for counts in all_counts():
        counts.save(tmp_path / "counts" / f"{counts.settings.language}.safetensors")
    overrides = [f"identify.{name}={value}" for name, value in KNOBS.items()]
    arguments = [str(tmp_path / "counts"), *overrides, "identify.bootstrap_resamples=4"]
    assert run(monkeypatch, "stability", *arguments, "--json", "--picture", str(tmp_path / "a.svg")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["languages"] == measure_stability(SECTION, all_counts, seed=0).as_json()["languages"]
    assert "mlt_Latn" in (tmp_path / "a.svg").read_text()
    assert run(monkeypatch, "stability", str(tmp_path / "counts"), "identify.top_rate=0.2") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-2] == "knobs: top_rate 0.2, filter_rate 0.95, activation_bar_ratio 0.95"
    assert out[-1].startswith("(as published where not overridden")
    assert run(monkeypatch, "stability", *arguments, "identify.top_rat=1") == 2
    assert "did you mean identify.top_rate?" in capsys.readouterr().err


def test_show_tells_confidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = select_neurons(SECTION, all_counts())
    plain.save(tmp_path / "plain.safetensors")
    confidence = measure_stability(SECTION, all_counts, seed=0).confidence
    made: NeuronSet = replace(plain, confidence=confidence)
    made.save(tmp_path / "sure.safetensors")
    assert run(monkeypatch, "show", str(tmp_path / "plain.safetensors")) == 0
    assert "confidence" not in capsys.readouterr().out
    assert run(monkeypatch, "show", str(tmp_path / "sure.safetensors")) == 0
    values = [value for one in (confidence or {}).values() for value in one.tolist()]
    expected = (
        f"confidence {sum(values) / len(values):.3f} on average; {sum(v > 0.9 for v in values)} neurons"
    )
    assert expected in capsys.readouterr().out
    assert run(monkeypatch, "show", str(tmp_path / "sure.safetensors"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["confidence"]["below_0.5"] == sum(v < 0.5 for v in values)
    assert told["languages"]["mlt_Latn"]["confidence"]["mean"] == pytest.approx(
        made.confidence["mlt_Latn"].mean().item() if made.confidence else None
    )
