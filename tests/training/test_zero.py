"""DeepSpeed's configuration: what we set, what a user's own block overrides."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from lape_ds.errors import UserError
from lape_ds.recipe import DeepSpeedSection, TrainSection, load_recipe
from lape_ds.training import zero
from lape_ds.training.plan.candidates import Costing, Setting
from lape_ds.training.plan.cluster import parse_cluster
from lape_ds.training.zero import (
    check_offload,
    check_version,
    engine_config,
    monitor_config,
    with_fitting_buckets,
)


def config(*, largest_part: int = 0, **section: Any) -> dict[str, Any]:
    train = TrainSection(micro_batch_size=3, gradient_accumulation_steps=5, gradient_clipping=0.5)
    made = DeepSpeedSection.model_validate({"zero_stage": 2, **section})
    return engine_config(train, made, dtype="bfloat16", largest_part=largest_part)


def test_the_recipes_numbers_arrive() -> None:
    made = config()
    assert made["train_micro_batch_size_per_gpu"] == 3
    assert made["gradient_accumulation_steps"] == 5
    assert made["gradient_clipping"] == 0.5
    assert made["bf16"] == {"enabled": True}
    assert made["zero_optimization"]["stage"] == 2


def test_gradients_are_summed_in_fp32_where_deepspeed_can() -> None:
    """Stage 0 in bf16 refuses another accumulation dtype (NotImplementedError in DeepSpeed 0.19)."""
    assert [config(zero_stage=stage).get("data_types") for stage in (0, 1, 2, 3)] == [
        None,
        *[{"grad_accum_dtype": "fp32"}] * 3,
    ]


def test_a_users_block_is_merged_key_by_key() -> None:
    extra = {
        "zero_optimization": {"reduce_bucket_size": 9, "zero_hpz_partition_size": 2},
        "comms_logger": {"enabled": True},
    }
    made = config(zero_stage=3, offload_optimizer="cpu", config=extra)
    assert made["zero_optimization"]["reduce_bucket_size"] == 9
    assert made["zero_optimization"]["zero_hpz_partition_size"] == 2
    assert made["zero_optimization"]["stage"] == 3
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert made["comms_logger"] == {"enabled": True}
    assert extra == {
        "zero_optimization": {"reduce_bucket_size": 9, "zero_hpz_partition_size": 2},
        "comms_logger": {"enabled": True},
    }


def test_buckets_are_as_large_as_what_is_reduced() -> None:
    """DeepSpeed's own 500 M elements at most; a user's size stays, also beside the same number of weights."""
    sizes = [
        with_fitting_buckets(config(), number)["zero_optimization"].get("reduce_bucket_size")
        for number in (0, 1, 3_000_000, 500_000_000, 10**10)
    ]
    assert sizes == [1, 1, 3_000_000, None, None]
    own = config(config={"zero_optimization": {"reduce_bucket_size": 9}})
    assert with_fitting_buckets(own, 3_000_000) == own


def test_the_masked_optimizer_is_let_in() -> None:
    made = config(offload_optimizer="cpu")
    assert made["zero_allow_untested_optimizer"] is True
    assert made["zero_force_ds_cpu_optimizer"] is False


def test_parameter_offload() -> None:
    on_host = config(zero_stage=3, offload_parameters="cpu")["zero_optimization"]["offload_param"]
    assert on_host["device"] == "cpu"
    extra = {"zero_optimization": {"offload_param": {"buffer_count": 9}}}
    disk = {"offload_parameters": "nvme", "nvme_path": Path("/disk"), "config": extra}
    on_disk = config(zero_stage=3, **disk, largest_part=77)["zero_optimization"]["offload_param"]
    assert on_disk["device"] == "nvme"
    assert on_disk["nvme_path"] == "/disk"
    assert (on_disk["buffer_size"], on_disk["buffer_count"]) == (77, 9)


def test_the_plan_counts_with_what_training_is_given(tiny_recipe: Path) -> None:
    own = "{zero_optimization: {reduce_bucket_size: 9}, communication_data_type: bf16}"
    stage = ["deepspeed.zero_stage=3", "deepspeed.offload_optimizer=cpu", "deepspeed.offload_parameters=cpu"]
    sizes = ["train.micro_batch_size=4", "train.gradient_accumulation_steps=3"]
    recipe = load_recipe(tiny_recipe, [f"deepspeed.config={own}", *stage, *sizes])
    setting = Setting(3, "cpu", "cpu", micro_batch_size=4, accumulation=3, checkpointing="none", num_ranks=1)
    planned = Costing(load_recipe(tiny_recipe, [f"deepspeed.config={own}"]), parse_cluster("1x80GB"))
    assert planned.config(setting) == engine_config(recipe.train, recipe.deepspeed, dtype="float32")


def test_metrics_go_where_the_recipe_says(tiny_recipe: Path) -> None:
    assert monitor_config(load_recipe(tiny_recipe)) == {}
    recipe = load_recipe(tiny_recipe, ["train.tensorboard=true"])
    monitors = monitor_config(recipe)
    made = engine_config(recipe.train, recipe.deepspeed, dtype="float32", monitors=monitors)
    where = {"enabled": True, "output_path": str(recipe.run_dir), "job_name": "tensorboard"}
    assert made["tensorboard"] == where


def test_nvme_without_its_folder_is_refused(tmp_path: Path) -> None:
    section = DeepSpeedSection(zero_stage=3, offload_parameters="nvme", nvme_path=tmp_path / "gone")
    with pytest.raises(UserError, match=r"nvme_path=.*/gone: no such folder"):
        check_offload(section)


@pytest.mark.parametrize(
    ("version", "method", "checkpointing", "refused"),
    [
        ("0.19.2", "subnetwork", "non_reentrant", True),
        ("0.19.2", "subnetwork", "reentrant", False),
        ("0.19.2", "full", "non_reentrant", False),
        ("0.19.10", "subnetwork", "non_reentrant", False),
        (None, "subnetwork", "non_reentrant", False),
    ],
)
def test_an_older_deepspeed_is_refused_where_it_fails(
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    method: str,
    checkpointing: str,
    refused: bool,
) -> None:
    if version is not None:  # what pip leaves of that version, found before the installed one
        (tmp_path / f"deepspeed-{version}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: deepspeed\nVersion: {version}\n"
        (tmp_path / f"deepspeed-{version}.dist-info" / "METADATA").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
    settings = ["deepspeed.zero_stage=3", f"train.gradient_checkpointing={checkpointing}"]
    recipe = load_recipe(tiny_recipe, [f"train.method={method}", *settings])
    with pytest.raises(UserError, match=r"deepspeed 0.19.2 fails.*>=0.19.3") if refused else nullcontext():
        check_version(recipe)


@pytest.mark.parametrize("has_libaio", [True, False])
def test_nvme_without_libaio_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_libaio: bool
) -> None:
    section = DeepSpeedSection(zero_stage=3, offload_parameters="nvme", nvme_path=tmp_path)
    monkeypatch.setattr(zero.AsyncIOBuilder, "is_compatible", lambda self: has_libaio)
    with nullcontext() if has_libaio else pytest.raises(UserError, match=r"nvme needs libaio.*libaio-dev"):
        check_offload(section)
