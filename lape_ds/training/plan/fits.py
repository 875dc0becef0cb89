"""Does a recipe's own setting fit the machine it is about to run on? Asked by the preflight, before a weight is loaded."""

from __future__ import annotations

import copy
import math
import sys

from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.errors import UserError, first_line
from lape_ds.model.ffn import is_mixture
from lape_ds.model.meters import META_ATTENTION
from lape_ds.recipe import Recipe, TrainSection
from lape_ds.runlog import readable_bytes
from lape_ds.training.plan.candidates import Candidate, Costing, Setting
from lape_ds.training.plan.cluster import Cluster
from lape_ds.training.plan.methods import name_of
from lape_ds.training.plan.profile import profile

# The plan is held to a live engine within 10 % (tests/training/plan): what is over by more cannot fit.
_CERTAIN = 0.9
REFUSAL = ", and launch.check_memory=warn tries this one"  # how one ends


def check_memory(
    recipe: Recipe,
    skeleton: PreTrainedModel,
    train: TrainSection,
    neurons: Tensor | None,
    cluster: Cluster,
) -> None:
    """Refuses a setting that cannot fit by the plan, and warns of one that may not, as `launch.check_memory` has it.

    Mixtures of experts are not planned. A plan that fails is our fault and no reason to stop a run: it is told, and that is all.

    Args:
        recipe: The recipe.
        skeleton: Its model without weights, which stays as it is.
        train: Its training section, with `lora.r` a number.
        neurons: integer [n, 2] for the methods that train neurons.
        cluster: What it is about to run on.

    Raises:
        UserError: It cannot fit, and is to be refused.
    """
    if recipe.launch.check_memory == "off":
        return
    try:
        found = planned(recipe, skeleton, train, neurons, cluster)
    except UserError:
        raise
    except Exception as error:  # whatever it is, training does not need it
        print(
            f"warning: the plan fails, so nothing is known of the memory that a step takes ({type(error).__name__}: "
            f"{first_line(error)})",
            file=sys.stderr,
        )
        return
    if found is None or found.fits:
        return
    told = f"{_misfit(found, cluster)}; `lape-ds plan` names settings that fit"
    host_memory = math.inf if found.host_memory is None else found.host_memory
    certain = _CERTAIN * found.peak > cluster.memory or _CERTAIN * found.host > host_memory
    if certain and recipe.launch.check_memory == "refuse":
        raise UserError(f"{told}{REFUSAL}")
    print(f"warning: {told}", file=sys.stderr)


def _misfit(found: Candidate, cluster: Cluster) -> str:
    if not found.fits_host:
        there = readable_bytes(found.host_memory or 0)
        return f"by the plan offload takes {readable_bytes(found.host)} of a node that has {there} of host memory left"
    kind = max(found.gpu, key=lambda name: found.gpu[name])
    what = "a GPU" if cluster.gpu else "a rank"
    return (
        f"by the plan this setting takes {readable_bytes(found.peak)} of {what} that has {readable_bytes(cluster.memory)} "
        f"({kind} {readable_bytes(found.gpu[kind])})"
    )


def planned(
    recipe: Recipe,
    skeleton: PreTrainedModel,
    train: TrainSection,
    neurons: Tensor | None,
    cluster: Cluster,
) -> Candidate | None:
    """What the recipe's own setting costs; None of a mixture of experts."""
    if is_mixture(skeleton):
        return None
    section = recipe.deepspeed
    setting = Setting(
        zero_stage=section.zero_stage,
        offload_optimizer=section.offload_optimizer,
        offload_parameters="none" if section.offload_parameters == "none" else "cpu",
        micro_batch_size=train.micro_batch_size,
        accumulation=train.gradient_accumulation_steps,
        checkpointing=train.gradient_checkpointing,
        num_ranks=cluster.gpus_per_node,
    )
    made = profile(
        _to_be_profiled(recipe, skeleton),
        train,
        neurons,
        train.gradient_checkpointing,
        largest=train.micro_batch_size,
        partitioned=section.zero_stage == 3,
    )
    return Costing(recipe, cluster).candidate(name_of(train), made, setting)


def _to_be_profiled(recipe: Recipe, skeleton: PreTrainedModel) -> PreTrainedModel:
    """A copy, with the attention that counts without weights."""
    copied = copy.deepcopy(skeleton)
    if recipe.model.attn_implementation != "eager":
        copied.set_attn_implementation(META_ATTENTION)
    return copied
