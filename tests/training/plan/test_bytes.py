"""Planned bytes against those of the real engine on two ranks, kind by kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from lape_ds.training.memory import largest_state_bytes
from lape_ds.training.plan.candidates import Costing
from lape_ds.training.plan.cluster import Cluster
from lape_ds.training.plan.methods import Subject, section_of, skeleton_of
from lape_ds.training.plan.profile import Profile, profile
from tests.processes import run_ranks
from tests.selection import as_param, selected_cases
from tests.training.plan.cases import BLOCKS, LLAMA, SIZES, WORLD_SIZE, Case, all_cases, is_short, neurons_of

CLUSTER = Cluster(1, WORLD_SIZE, 10**9, gpu="")
COMPARED = "-z2-full-bfloat16-none"
Measured = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    for size, config in SIZES.items():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA, **config))
        model.save_pretrained(folder / size)
    for case in all_cases():
        case.recipe(folder)
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path, request: pytest.FixtureRequest) -> Measured:
    names = {*selected_cases(request.session, all_cases()), *(f"{size}{COMPARED}" for size in SIZES)}
    run_ranks("tests.training.plan.worker", [str(folder), *names], world_size=WORLD_SIZE, timeout=600)
    return json.loads((folder / "measured.json").read_text())


_PROFILES: dict[tuple[str | bool, ...], Profile] = {}


def planned_profile(case: Case, folder: Path) -> Profile:
    key = (case.size, case.method, case.dtype, case.checkpointing, case.stage == 3)
    if key not in _PROFILES:
        recipe, neurons = case.recipe(folder), neurons_of(case.size)
        subject = Subject(recipe, skeleton_of(recipe), neurons, "")
        wanted = neurons if case.method in ("subnetwork", "masked") else None
        section = section_of(subject, case.method)
        _PROFILES[key] = profile(
            subject.skeleton, section, wanted, case.checkpointing, largest=BLOCKS, partitioned=case.stage == 3
        )
    return _PROFILES[key]


@pytest.mark.parametrize(
    "case", [as_param(case, case.name, is_long=not is_short(case)) for case in all_cases()]
)
def test_planned_bytes_are_the_engines(case: Case, folder: Path, measured: Measured) -> None:
    costing, found = Costing(case.recipe(folder), CLUSTER), measured[case.name]
    counted = planned_profile(case, folder)
    plan = costing.candidate(case.method, counted, case.setting)
    state = largest_state_bytes(counted.contents, costing.layout(case.setting, counted.contents))
    expected = {kind: getattr(state, kind) for kind in ("weights", "masters", "moments")}
    expected["activations"] = plan.gpu["activations"]
    if case.offload_optimizer == "none":
        expected["gradients"] = state.gradients
    else:
        found["host"] += found["masters"] + found["moments"]
        found["host"] += found["weights"] if case.offload_parameters == "cpu" else 0
        expected["host"] = state.host
    if state.buckets:
        expected["buckets"] = state.buckets
    if case.stage == 3:
        expected["gathers"] = plan.gpu["gathers"]
    assert {kind: found[kind] for kind in expected} == pytest.approx(expected, rel=0.1)


def test_sizes_differ(measured: Measured) -> None:
    """So that agreement at both says something."""
    small, large = (measured[f"{size}{COMPARED}"] for size in SIZES)
    assert all(
        large[kind] > 2 * small[kind]
        for kind in ("weights", "masters", "moments", "gradients", "activations")
    )
