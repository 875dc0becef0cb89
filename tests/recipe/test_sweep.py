"""The `sweep:` section, and the training recipes that it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from lape_ds.errors import UserError
from lape_ds.recipe import LoRASection, TrainSection, load_recipe, sweep_runs
from lape_ds.recipe.sweep_section import DEFAULT_RATES

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
BASE = """\
name: trial
output_dir: out
languages: {target: mt, identify: [mt, no, "et"]}
model: {path: org/model}
corpus: {source: {kind: cldr}}
train: {optimizer: {name: adamw, weight_decay: 0.5}, heldout: {every_steps: 7}}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(BASE, encoding="utf-8")
    return path


def test_every_method_has_default_rates_around_the_papers() -> None:
    assert DEFAULT_RATES.keys() == set(get_args(TrainSection.model_fields["method"].annotation))
    # arXiv 2510.13580: 1e-5 for full and FFN-only, 1e-4 for the others; arXiv 2205.05638: 3e-3 for (IA)³.
    papers = dict.fromkeys(DEFAULT_RATES, 1e-4) | {"full": 1e-5, "ffn": 1e-5, "ia3": 3e-3}
    for method, rates in DEFAULT_RATES.items():
        assert min(rates) < papers[method] < max(rates)


@pytest.mark.usefixtures("users_text")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_can_be_swept(path: Path) -> None:
    runs = sweep_runs(load_recipe(path))
    assert len({run.run_dir for run in runs}) == len(runs) > 1
    assert len({run.variant for run in runs}) >= len(DEFAULT_RATES)


def test_a_run_is_the_recipe_with_its_own_settings(recipe_file: Path) -> None:
    settings = [
        "sweep.variants=[{method: random}, {name: full+x, method: full, learning_rates: [1e-6], "
        "set: {train.replay.share: 0.25, deepspeed.zero_stage: 0}}]",
        "sweep.seeds=[3, 5]",
        "sweep.set={train.max_steps: 9, deepspeed.zero_stage: 1}",
    ]
    runs = sweep_runs(load_recipe(recipe_file, settings))
    rates = DEFAULT_RATES["random"]
    assert [(run.variant, run.learning_rate, run.seed) for run in runs] == [
        *((("random", rate, 3)) for rate in rates),
        ("full+x", 1e-6, 3),
        *((("random", rate, 5)) for rate in rates),
        ("full+x", 1e-6, 5),
    ]
    same = [
        "seed=5",
        "train.method=full",
        "train.optimizer.learning_rate=1e-6",
        "train.run_name=sweep/full+x/lr-1e-06/seed-5",
        "train.replay.share=0.25",
        "train.max_steps=9",
        "deepspeed.zero_stage=0",  # the variant's own comes after the sweep's
        "train.heldout.languages=[no, et]",  # none named: all that are not trained
    ]
    assert runs[-1].recipe == load_recipe(recipe_file, same)
    assert runs[-1].run_dir == Path("out/train/sweep/full+x/lr-1e-06/seed-5")
    assert runs[0].recipe.train.max_steps == 9


def test_settings_of_other_methods_are_for_their_runs_alone(recipe_file: Path) -> None:
    settings = [
        "train.lora={r: 8, targets: all}",
        "train.engine=masked",
        "sweep.variants=[{method: subnetwork}, {method: lora}, {method: full}]",
        "sweep.set={train.lora.dropout: 0.0}",
        "sweep.seeds=[3]",
    ]
    runs = {run.variant: run.recipe.train for run in sweep_runs(load_recipe(recipe_file, settings))}
    assert (runs["lora"].lora.r, runs["lora"].lora.dropout, runs["lora"].engine) == (8, 0.0, "compact")
    assert runs["subnetwork"].engine == "masked"
    assert runs["full"].engine == "compact"
    assert runs["subnetwork"].lora == runs["full"].lora == LoRASection()
    assert {train.random_seed for train in runs.values()} == {0}


def test_named_languages_stay(recipe_file: Path) -> None:
    runs = sweep_runs(load_recipe(recipe_file, ["train.heldout.languages=[et]"]))
    assert {tuple(run.recipe.train.heldout.languages) for run in runs} == {("ekk_Latn",)}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("variants: [{method: sub}]", r"variants\.0: method must be one of subnetwork, .*, not 'sub'"),
        ("variants: [{name: x}]", r"variants\.0\.method: must be given"),
        ("variants: [{method: full, naem: x}]", "did you mean sweep.variants.0.name"),
        ("variants: [{method: full}, {method: full}]", "two are named full"),
        ("variants: [{method: full, name: a/b}]", "pattern"),
        ("variants: [{method: full, learning_rates: []}]", "at least 1 item"),
        ("variants: [{method: full, learning_rates: [1e-4, 0.0001]}]", "a rate is given twice"),
        ("variants: [{method: full, learning_rates: [0]}]", "must be greater than 0"),
        ("variants: [{method: full, set: {seed: 1}}]", "seed cannot be set here"),
        (
            "variants: [{method: full, set: {train.optimizer: {name: sgd}}}]",
            "train.optimizer.learning_rate is given by learning_rates",
        ),
        (
            "variants: [{method: full, set: {train.heldout.languages: [et]}}]",
            "must be the same for all variants; set it in sweep.set",
        ),
        ("set: {train.method: ffn}", "train.method is given by method"),
        ("seeds: [1, 1]", "a seed is given twice"),
        ("seeds: []", "at least 1 item"),
        ("workers: 0", "must be greater than 0"),
    ],
)
def test_refusals(recipe_file: Path, section: str, message: str) -> None:
    recipe_file.write_text(f"{BASE}sweep: {{{section}}}\n", encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(recipe_file)
    assert str(caught.value).endswith(f"({recipe_file}:7)")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.variants=[{method: full, set: {train.max_step: 1}}]", "did you mean train.max_steps"),
        ("sweep.set={train.name.x: 1, train.max_steps.x: 1}", "train.name: unknown key"),
        ("sweep.variants=[{method: full, set: {train.replay.share: 2}}]", "train.replay.share: must be less"),
        ("train.wandb=project", "train.wandb: one process trains many runs"),
    ],
)
def test_what_runs_are_refused_for(recipe_file: Path, override: str, message: str) -> None:
    recipe = load_recipe(recipe_file, [override])
    with pytest.raises(UserError, match=message):
        sweep_runs(recipe)
