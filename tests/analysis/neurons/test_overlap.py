"""Figures, text and pictures of neuron sets: the published facts, and Python's own sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lape_ds import cli
from lape_ds.analysis.neurons.overlap import Layers, Overlap, by_family
from lape_ds.languages import all_languages
from lape_ds.neurons.families import family
from lape_ds.neurons.neuron_set import NeuronSet

LANGUAGES = "mt af is cy mk lv lt sl sk et ka ne"
# The published sets (method.md): neurons of each language, Maltese by layer, distinct neurons.
PUBLISHED = {
    "llama": (
        "3015 2581 5033 6020 1743 3212 2978 2046 1940 3204 1150 4625",
        "7 71 1 127 2 0 2 0 1 2 1 2 0 1 4 1 7 9 13 11 14 21 15 21 267 350 463 588 572 258 163 21",
        22_938,
    ),
    "nemo": (
        "3611 3557 5644 8239 2403 3741 3840 2365 2310 3815 2028 5567",
        "2 65 9 42 93 17 5 1 1 4 0 1 1 2 1 1 3 2 1 15 15 10 5 17 19 65 61 60 103 63 169 273 314 482 472 419 349 200 142 107",
        28_672,
    ),
}


def published_form(name: str) -> list[list[Tensor]]:
    """A file of that form: Maltese in its layers, the others one after the other over and over the same distinct neurons."""
    totals, maltese, distinct = PUBLISHED[name]
    per_layer = [int(number) for number in maltese.split()]
    places = [(layer, index) for layer, number in enumerate(per_layer) for index in range(number)]
    places += [(j % len(per_layer), 1000 + j // len(per_layer)) for j in range(distinct - len(places))]
    languages, start = [], 0
    for total in map(int, totals.split()):
        chosen = [places[(start + j) % distinct] for j in range(total)]
        start += total
        languages.append(
            [torch.tensor([i for at, i in chosen if at == layer]).long() for layer in range(len(per_layer))]
        )
    return languages


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["lape-ds", "neurons", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_facts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a file of the published form through import and show."""
    torch.save(published_form(name), tmp_path / "set.pth")
    out = str(tmp_path / "set.safetensors")
    settings = [
        "--languages",
        LANGUAGES.replace(" ", ","),
        "--model",
        "org/x",
        "--neurons-per-layer",
        "14336",
    ]
    assert run(monkeypatch, "import", str(tmp_path / "set.pth"), out, *settings, "--no-fingerprint") == 0
    capsys.readouterr()
    assert run(monkeypatch, "show", out) == 0
    lines = capsys.readouterr().out.splitlines()
    totals, maltese, distinct = PUBLISHED[name]
    assert [int(line.split()[1].replace(",", "")) for line in lines[1:-1]] == [int(n) for n in totals.split()]
    assert lines[1].startswith("mlt_Latn")
    assert lines[1].endswith(f"per layer: {maltese}")
    assert lines[-1].split() == ["distinct", f"{distinct:,}", "(5.000", "%)"]
    assert run(monkeypatch, "show", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["distinct"] == distinct
    assert told["languages"]["mlt_Latn"]["per_layer"] == [int(n) for n in maltese.split()]


def random_set(num_languages: int, *, seed: int = 0) -> NeuronSet:
    """Of languages of all kinds, 4 layers x 30 neurons; the third language has none."""
    every = [language.code for language in all_languages()]
    codes = every[:: len(every) // num_languages][:num_languages]
    generator = torch.Generator().manual_seed(seed)
    indices = {}
    for number, code in enumerate(codes):
        size = 0 if number == 2 else int(torch.randint(1, 40, (1,), generator=generator))
        flat = torch.randperm(120, generator=generator)[:size].sort().values
        indices[code] = torch.stack([flat // 30, flat % 30], 1).int()
    return NeuronSet(indices, 4, 30, "tiny", "", "lape", {})


def as_sets(found: NeuronSet) -> dict[str, set[tuple[int, int]]]:
    return {code: {(layer, i) for layer, i in found.neurons(code).tolist()} for code in found.languages}


def test_layers_equal_sets() -> None:
    found = random_set(12)
    sets, layers = as_sets(found), Layers.of(found)
    assert layers.distinct == len(set.union(*sets.values()))
    for one in layers.languages:
        others = set.union(*(neurons for code, neurons in sets.items() if code != one.code))
        assert one.own == len(sets[one.code] - others)
        assert list(one.per_layer) == [sum(at == layer for at, _ in sets[one.code]) for layer in range(4)]


@pytest.mark.parametrize("by", ["languages", "families"])
def test_overlap_equals_sets(by: str) -> None:
    found = random_set(40)
    sets = as_sets(found)
    if by == "families":
        overlap = Overlap.of_families(found)
        sets = {
            name: set.union(*(sets[code] for code in sets if family(code) == name)) for name in overlap.names
        }
        assert len(overlap.names) < 40
    else:
        overlap = Overlap.of_languages(found)
    assert sorted(overlap.names) == sorted(sets)
    for first, a in enumerate(overlap.names):
        for second, b in enumerate(overlap.names):
            assert overlap.shared[first][second] == len(sets[a] & sets[b])
            either = len(sets[a] | sets[b])
            assert overlap.jaccard(first, second) == (len(sets[a] & sets[b]) / either if either else 0)


def test_means_within_and_between_families() -> None:
    """Any two of Afrikaans, German and Georgian share 1 neuron of 3; relatives are who the table or the set says."""
    neurons = {"afr_Latn": [0, 1], "kat_Geor": [1, 5], "deu_Latn": [1, 2]}
    indices = {code: torch.tensor([[0, i] for i in of]).int() for code, of in neurons.items()}
    overlap = Overlap.of_languages(NeuronSet(indices, 1, 9, "tiny", "", "lape", {}))
    assert overlap.names == ("afr_Latn", "deu_Latn", "kat_Geor")
    assert overlap.means() == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    chosen = {"families": dict.fromkeys(neurons, "one") | {"deu_Latn": "two"}}
    overlap = Overlap.of_languages(NeuronSet(indices, 1, 9, "tiny", "", "family_lape", chosen))
    assert overlap.names == ("afr_Latn", "kat_Geor", "deu_Latn")


def test_relatives_stand_together() -> None:
    families = {"a": "x", "b": "alone", "c": "y", "d": "x", "e": "y", "f": "single"}
    assert by_family(families) == ["a", "d", "c", "e", "b", "f"]


def test_text_of_many_languages_names_the_nearest() -> None:
    found = random_set(40)
    overlap = Overlap.of_languages(found)
    lines = list(overlap.lines())
    assert len(lines) == 41
    best = max((overlap.jaccard(0, other), -other) for other in range(1, 40))
    nearest = f"{overlap.names[-best[1]]} {best[0]:.3f} ({overlap.shared[0][-best[1]]}), "
    assert lines[0].startswith(f"{overlap.names[0]}  nearest by Jaccard (shared): {nearest}")
    few = list(Overlap.of_languages(random_set(3)).lines())
    assert [line.split()[0] for line in few if line] == [
        "shared",
        *overlap_names(3),
        "Jaccard",
        *overlap_names(3),
        "mean",
    ]


def overlap_names(number: int) -> tuple[str, ...]:
    return Overlap.of_languages(random_set(number)).names


@pytest.mark.parametrize("number", [1, 12, 120])
def test_pictures_name_every_language(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = random_set(number)
    out, svg = tmp_path / "set.safetensors", tmp_path / "a.svg"
    found.save(out)
    for command in (["show"], ["overlap"]):
        assert run(monkeypatch, *command, str(out), "--picture", str(svg)) == 0
        text = svg.read_text(encoding="utf-8")
        assert all(f">{code}</text>" in text for code in found.languages)
        assert all(f">{family(code)}</text>" in text for code in found.languages)
        if number == 12:
            assert run(monkeypatch, *command, str(out), "--picture", str(tmp_path / "b.svg")) == 0
            assert (tmp_path / "b.svg").read_bytes() == svg.read_bytes()
    if number == 12:
        assert (
            run(monkeypatch, "overlap", str(out), "--by", "family", "--picture", str(tmp_path / "c.png")) == 0
        )
        assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
        capsys.readouterr()
        assert run(monkeypatch, "show", str(out), "--picture", str(tmp_path / "d.jpg")) == 2
        assert "allowed: a name that ends in .png or .svg" in capsys.readouterr().err
