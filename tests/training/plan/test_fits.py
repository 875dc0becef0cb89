"""The preflight's question to the plan, on the machine at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import load_recipe
from lape_ds.training.plan.cluster import Cluster
from lape_ds.training.plan.fits import check_memory, planned


@pytest.mark.parametrize(
    ("memory", "outcome"), [(0.85, "refused"), (1.02, "warned"), (1.2, "silent")], ids=str
)
def test_refused_warned_or_silent(
    tiny_recipe: Path, memory: float, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a machine of so many times the planned peak, 8 % of which are kept free."""
    recipe = load_recipe(tiny_recipe)
    neurons = NeuronSet.load(tiny_recipe.parent / "neurons.safetensors").neurons("mlt_Latn")
    found = planned(recipe, recipe.train, neurons, Cluster(1, 2, 10**12, gpu=""))
    assert found is not None
    cluster = Cluster(1, 2, int(memory * found.peak), gpu="")
    if outcome == "refused":
        with pytest.raises(
            UserError, match=r"^by the plan this setting takes .*B of a rank that has .*`lape-ds plan`"
        ):
            check_memory(recipe, recipe.train, neurons, cluster)
        return
    check_memory(recipe, recipe.train, neurons, cluster)
    assert ("warning: by the plan" in capsys.readouterr().err) == (outcome == "warned")
