"""The stage from text to neurons.safetensors, on a tiny model and CLDR text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lape_ds.errors import UserError
from lape_ds.identification import share
from lape_ds.identification.stage import count_part, identify
from lape_ds.identification.units import Unit
from lape_ds.model.loading import fingerprint
from lape_ds.model.shape import model_shape
from lape_ds.neurons.counts import Counts
from lape_ds.neurons.lape import select
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import freeze_recipe, load_recipe
from tests.identification.making import CODES, make_recipe
from tests.tiny_models import MIXTURES, NUM_EXPERTS, tiny_model


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stage(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(tmp_path, model_folder)
    neuron_set = identify(recipe)
    counts = {code: Counts.load(recipe.identify_dir / "counts" / f"{code}.safetensors") for code in CODES}
    loaded = NeuronSet.load(recipe.identify_dir / "neurons.safetensors")

    assert loaded.languages == tuple(CODES)
    assert (loaded.num_layers, loaded.neurons_per_layer, loaded.method) == (3, 40, "lape")
    assert loaded.model_fingerprint == fingerprint(model_folder)
    assert loaded.knobs["top_rate"] == 0.25
    assert loaded.knobs["context_length"] == 64
    probs = torch.stack([counts[code].probabilities() for code in CODES], dim=-1)
    expected = select(probs, top_rate=0.25, filter_rate=0.75, activation_bar_ratio=0.75)
    for code, neurons in zip(CODES, expected, strict=True):
        assert torch.equal(loaded.neurons(code), neurons)
        assert torch.equal(neuron_set.neurons(code), neurons)
    assert len(loaded.union(*CODES)) == 30  # 25 % of 3 × 40
    for code in CODES:
        # The document that reaches the budget is whole; BOS and EOS are in it and are not counted.
        assert 4000 <= counts[code].parts[0].num_tokens < 4300
        assert 3800 < int(counts[code].tokens.sum()) < counts[code].parts[0].num_tokens
        assert int((counts[code].tokens > 0).sum()) > 8  # documents spread over the 16 buckets
    assert (recipe.identify_dir / "recipe.yaml").is_file()
    assert (recipe.identify_dir / "run.json").is_file()
    printed = capsys.readouterr().out
    assert all(code in printed for code in CODES)
    assert "30 distinct of 120 neurons" in printed
    stability = json.loads((recipe.identify_dir / "stability.json").read_text())["languages"]
    for code in CODES:
        row = next(line for line in printed.splitlines() if code in line)
        cells = [cell.strip() for cell in row.strip("│┃ ").split("│")]
        assert cells[1] == f"{int(counts[code].tokens.sum()):,}"
        assert cells[-2:] == [f"{stability[code][name]:.2f}" for name in ("half_agreement",)] + [
            f"{stability[code]['confidence']['mean']:.2f}"
        ]
    assert max(map(len, printed.splitlines())) <= 80


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Unit]:
    """The units that are counted, as they are."""
    seen: list[Unit] = []
    count = share.count_activations

    def see(*args: Any, **given: Any) -> Counts:
        seen.append(Unit(given["settings"].language, given["part"].start, given["part"].stop))
        return count(*args, **given)

    monkeypatch.setattr(share, "count_activations", see)
    return seen


def test_finished_stage_loads_no_model(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, model_folder)
    identify(recipe)
    monkeypatch.setattr(share, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    identify(recipe)


def test_counts_of_another_model_are_not_overwritten(tmp_path: Path, model_folder: Path) -> None:
    """Nor those of other text: what is there may be days of work. The user deletes them, and they are counted."""
    recipe = make_recipe(tmp_path, model_folder)
    original = identify(recipe)
    path = recipe.identify_dir / "counts" / f"{CODES[1]}.safetensors"
    counts = Counts.load(path)
    other_model = replace(counts, settings=replace(counts.settings, model_fingerprint="0" * 64))
    other_text = replace(counts, parts=(replace(counts.parts[0], corpus_fingerprint="c" * 64),))
    for other, message in (
        (other_model, f"model_fingerprint is {original.model_fingerprint} now, {'0' * 64} there"),
        (other_text, r"the text \(corpus\) is .* now, cccccccccccccccc there"),
    ):
        other.save(path)
        before = files(recipe.identify_dir)
        with pytest.raises(
            UserError, match=f"{path} holds counts .*{message}.*another output_dir, or delete"
        ):
            identify(recipe)
        assert files(recipe.identify_dir) == before
    path.unlink()
    identify(recipe)
    assert torch.equal(Counts.load(path).active, counts.active)


def test_the_same_model_in_another_folder_counts_nothing_again(
    tmp_path: Path, model_folder: Path, counted: list[Unit]
) -> None:
    """As after a merge of parts that other clusters have counted."""
    whole = make_recipe(tmp_path / "whole", model_folder)
    identify(whole)
    recipe = make_recipe(tmp_path, model_folder)
    for code in CODES:
        counts = Counts.load(whole.identify_dir / "counts" / f"{code}.safetensors")
        named = replace(counts, settings=replace(counts.settings, model_id="/elsewhere/base"))
        named.save(recipe.identify_dir / "counts" / f"{code}.safetensors")
    before = files(recipe.identify_dir / "counts")
    counted.clear()
    identify(recipe)
    assert not counted
    assert files(recipe.identify_dir / "counts") == before


def test_damaged_counts_stop_the_stage(tmp_path: Path, model_folder: Path) -> None:
    """They are not quietly counted again: the user should know that the disk, or a hand, spoilt a file."""
    recipe = make_recipe(tmp_path, model_folder)
    identify(recipe)
    path = recipe.identify_dir / "counts" / f"{CODES[1]}.safetensors"
    counts = Counts.load(path)
    counts.active[0, 0, 0] = -1
    counts.save(path)
    before = files(recipe.identify_dir)
    with pytest.raises(UserError, match=r"kat_Geor.safetensors.*negative"):
        identify(recipe)
    assert files(recipe.identify_dir) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"identify": {"context_length": 65}},
            r"context_length=65 is longer than the model's context; at most 64",
        ),
        ({"model": {"path": "./not/there"}}, r"no config.json"),
    ],
)
def test_refused_before_anything_is_written(
    tmp_path: Path, model_folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        identify(make_recipe(tmp_path, model_folder, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identify": {"tokens_per_language": 500}}, "identify.tokens_per_language is 500 now, 4000 there"),
        ({"identify": {"context_length": 32}}, "identify.context_length is 32 now, None there"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype is bfloat16 now, float32 there"),
        ({"corpus": {"heldout_share": 0.2}}, r"corpus.heldout_share is 0.2 now, 0.1 there"),
    ],
)
def test_folder_of_another_recipe_is_refused(
    tmp_path: Path, model_folder: Path, changes: dict[str, Any], message: str
) -> None:
    recipe = make_recipe(tmp_path, model_folder)
    identify(recipe)
    before = files(recipe.identify_dir)
    with pytest.raises(UserError, match=f"another recipe: {message}"):
        identify(make_recipe(tmp_path, model_folder, **changes))
    assert files(recipe.identify_dir) == before


def test_a_part_is_of_one_division(tmp_path: Path, model_folder: Path) -> None:
    """Other units would make it another part; the whole does not depend on them."""
    settings = {"part": "0/2"}
    eager = {"attn_implementation": "eager"}
    recipe = make_recipe(tmp_path, model_folder, identify=settings, model=eager)
    count_part(recipe)
    counts = Counts.load(recipe.counting_dir / "counts" / f"{CODES[0]}.safetensors")
    assert counts.settings.attn_implementation == "eager"
    other = {"shard_tokens": 256}
    with pytest.raises(UserError, match=r"identify.shard_tokens is 256 now"):
        count_part(make_recipe(tmp_path, model_folder, identify=settings | other, model=eager))


@pytest.mark.parametrize(
    "changes",
    [
        {"identify": {"top_rate": 0.5, "filter_rate": 0.5, "activation_bar_ratio": 0.5}},
        {"languages": {"identify": [CODES[0], CODES[1]]}},
        {"languages": {"identify": [*CODES, "afr_Latn"]}},
    ],
    ids=["knobs", "fewer languages", "more languages"],
)
def test_selects_anew_from_the_counts_that_are_there(
    tmp_path: Path, model_folder: Path, counted: list[Unit], changes: dict[str, Any]
) -> None:
    """Other knobs count nothing again, a further language only itself; the result is that of a fresh folder."""
    identify(make_recipe(tmp_path, model_folder))
    fresh = make_recipe(tmp_path / "fresh", model_folder, **changes)
    identify(fresh)
    counted.clear()
    recipe = make_recipe(tmp_path, model_folder, **changes)
    identify(recipe)
    added = set(recipe.languages.identify) - set(CODES)
    assert {unit.language for unit in counted} == added
    loaded, expected = (
        NeuronSet.load(folder / "neurons.safetensors") for folder in (recipe.identify_dir, fresh.identify_dir)
    )
    assert (loaded.languages, loaded.knobs) == (expected.languages, expected.knobs)
    assert all(torch.equal(loaded.neurons(code), expected.neurons(code)) for code in expected.languages)
    assert load_recipe(recipe.identify_dir) == recipe  # and the folder says how


def test_other_methods_select_from_the_same_counts(tmp_path: Path, model_folder: Path) -> None:
    """But for the mean, whose sums were not asked for before; a recipe of `lape` takes counts that have them."""
    counted: dict[str, int] = {}
    for method in ("lape", "probability", "mean_activation", "family_lape"):
        knobs = {} if "lape" in method else {"filter_rate": 0.95, "activation_bar_ratio": 0.95}
        recipe = make_recipe(tmp_path, model_folder, identify={"method": method, **knobs})
        neuron_set = identify(recipe)
        assert neuron_set.method == method
        paths = [recipe.identify_dir / "counts" / f"{code}.safetensors" for code in CODES]
        assert all(
            torch.equal(
                neuron_set.neurons(code),
                NeuronSet.load(recipe.identify_dir / "neurons.safetensors").neurons(code),
            )
            for code in CODES
        )
        counted[method] = max(path.stat().st_mtime_ns for path in paths)
    assert counted["lape"] == counted["probability"] < counted["mean_activation"] == counted["family_lape"]


def test_refused_recipe_does_not_bind_the_mended_one(tmp_path: Path, model_folder: Path) -> None:
    """A folder in which nothing but the recipe stands holds no output of it."""
    recipe = make_recipe(tmp_path, model_folder)
    freeze_recipe(
        make_recipe(tmp_path, model_folder, model={"dtype": "bfloat16"}), recipe.identify_dir, sections=()
    )
    identify(recipe)
    assert load_recipe(recipe.identify_dir) == recipe


def test_context_length_decides_the_blocks(tmp_path: Path, model_folder: Path) -> None:
    """Same text, other windows: same tokens, other counts."""
    long = make_recipe(tmp_path / "long", model_folder)
    short = make_recipe(tmp_path / "short", model_folder, identify={"context_length": 16})
    identify(long)
    identify(short)
    counts = [
        Counts.load(recipe.identify_dir / "counts" / "mlt_Latn.safetensors") for recipe in (long, short)
    ]
    assert torch.equal(counts[0].tokens, counts[1].tokens)
    assert not torch.equal(counts[0].active, counts[1].active)
    with pytest.raises(UserError, match="differ in context_length"):
        counts[0].merge(replace(counts[1], parts=()))


@pytest.mark.parametrize(
    ("model_type", "per_neuron"),
    [("llama", 3 * 16), ("phi3", 3 * 16), ("opt", 2 * 16), *((name, 3 * 16) for name in MIXTURES)],
)
def test_model_shape(model_type: str, per_neuron: int) -> None:
    """A neuron is three vectors of the hidden size, two in an ungated block."""
    model = tiny_model(model_type)
    shape = model_shape(model)
    num_experts = NUM_EXPERTS if model_type in MIXTURES else 1
    assert (shape.num_layers, shape.neurons_per_layer) == (3, 23 * num_experts)
    assert (shape.experts_per_layer, shape.parameters_per_neuron) == (num_experts, per_neuron)
    assert shape.num_parameters == sum({id(p): p.numel() for p in model.parameters()}.values())
