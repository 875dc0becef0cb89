"""Every method trains what it should and nothing else, all start from the same loss, and the clones are ours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lape_ds.bench.clone import ClonedLinear
from lape_ds.bench.contenders import METHODS, WRITING, Contender, contender
from lape_ds.bench.shapes import all_scored, build_model, random_batch
from lape_ds.bench.sparse import neuron_mask
from lape_ds.subnetwork.compact import CompactFFN
from tests.bench.shapes import NEURONS, TINY
from tests.oracles.subnetwork import entry_positions

CPU = torch.device("cpu")
BATCH = random_batch(TINY, CPU, seed=1)


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return build_model(TINY, CPU, seed=0)


def make(name: str, base: PreTrainedModel, **changes: bool) -> Contender:
    return contender(name, base, NEURONS, learning_rate=0.01, **changes)


def whole_weights(made: Contender) -> dict[str, Tensor]:
    """What the model multiplies with now, under the base's names; what a tuner adds beside it is left out."""
    added = (".lora_", ".shira_", ".trained", "_slice")
    weights = {
        name.removeprefix("model.").replace(".base_layer", ""): param.detach().clone()
        for name, param in made.loss.named_parameters()
        if name.startswith("model.") and not any(part in name for part in added)
    }

    def write(name: str, axis: int, index: Tensor, values: Tensor) -> None:
        weights[f"{name.removeprefix('model.')}.weight"].index_copy_(axis, index, values.detach())

    for name, module in made.loss.named_modules():
        if isinstance(module, ClonedLinear):
            write(name, module.axis, module.index, module.trained)
        elif isinstance(module, CompactFFN) and len(module.index):
            write(f"{name}.gate_proj", 0, module.index, module.gate_slice)
            write(f"{name}.up_proj", 0, module.index, module.up_slice)
            write(f"{name}.down_proj", 1, module.index, module.down_slice)
    return weights


def changed(base: PreTrainedModel, made: Contender) -> dict[str, Tensor]:
    """Where weights differ from the base's, bool by name, of those that do."""
    before, after = dict(base.named_parameters()), whole_weights(made)
    assert before.keys() == after.keys()
    different = {name: after[name] != param.detach() for name, param in before.items()}
    return {name: mask for name, mask in different.items() if mask.any()}


@pytest.mark.parametrize("name", METHODS)
def test_all_start_from_the_base_models_loss(name: str, base: PreTrainedModel) -> None:
    with torch.no_grad():
        logits = base(input_ids=BATCH.input_ids).logits
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), BATCH.targets.flatten())
    assert float(make(name, base).step(BATCH)) == pytest.approx(float(expected), abs=1e-6)


def test_full_and_ffn_train_whole_weights(base: PreTrainedModel) -> None:
    full, ffn = make("full", base), make("ffn", base)
    for made in (full, ffn):
        made.step(BATCH)
    names = [name for name, _ in base.named_parameters()]
    assert sorted(changed(base, full)) == sorted(names)
    assert sorted(changed(base, ffn)) == sorted(name for name in names if ".mlp." in name)
    assert full.num_trained == sum(param.numel() for param in base.parameters())


@pytest.mark.parametrize("name", ["clone", "masked", "compact"])
def test_subnetworks_train_their_entries(name: str, base: PreTrainedModel) -> None:
    made = make(name, base)
    made.step(BATCH)
    expected = {}
    for weight, positions in entry_positions(base, NEURONS.tolist()).items():
        expected[weight] = torch.zeros_like(base.get_parameter(weight), dtype=torch.bool)
        expected[weight][tuple(torch.tensor(positions).T)] = True
    found = changed(base, made)
    assert found.keys() == expected.keys()
    for weight, mask in expected.items():
        assert torch.equal(found[weight], mask), weight
    assert made.num_trained == 5 * 3 * 32  # neurons, projections, hidden size


def test_tuners_leave_the_base_as_it_is(base: PreTrainedModel) -> None:
    for name in ("lora_ffn", "lora_all", "sparse"):
        made = make(name, base)
        before = {key: param.detach().clone() for key, param in made.loss.named_parameters()}
        made.step(BATCH)
        assert changed(base, made) == {}
        moved = {key for key, param in made.loss.named_parameters() if not torch.equal(param, before[key])}
        assert moved
        assert all("lora_" in key or "shira_" in key for key in moved)
        assert all((".mlp." in key) or name == "lora_all" for key in moved)


def test_lora_has_the_papers_size(base: PreTrainedModel) -> None:
    """r · (rows + columns) of every weight: FFN 32 and 48, attention 32 and 32 (k, v: 16)."""
    assert make("lora_ffn", base).num_trained == 3 * 3 * 32 * (32 + 48)
    attention = 2 * (32 + 32) + 2 * (32 + 16)
    assert make("lora_all", base).num_trained == 3 * 16 * (3 * (32 + 48) + attention)


def test_floor_trains_one_vector(base: PreTrainedModel) -> None:
    made = make("floor", base)
    made.step(BATCH)
    assert list(changed(base, made)) == ["model.layers.0.input_layernorm.weight"]
    assert made.num_trained == 32


def test_clone_masked_and_compact_agree(base: PreTrainedModel) -> None:
    """Over steps with weight decay: three ways to the same subnetwork."""
    contenders = {name: make(name, base) for name in ("clone", "masked", "compact")}
    for step in range(5):
        batch = random_batch(TINY, CPU, seed=step)
        losses = [float(made.step(batch)) for made in contenders.values()]
        assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    clone, masked, compact = (whole_weights(made) for made in contenders.values())
    for name, weight in clone.items():
        torch.testing.assert_close(masked[name], weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(compact[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WRITING)
def test_a_shared_base_is_left_bit_for_bit(name: str, base: PreTrainedModel) -> None:
    """Learning rate 0 on shared storage, as on a GPU that holds no copies; gradients and moments are real."""
    before = {key: param.detach().clone() for key, param in base.named_parameters()}
    made = make(name, base, own_weights=False)
    for _ in range(2):
        made.step(BATCH)
    for key, param in base.named_parameters():
        assert torch.equal(param, before[key])
    assert made.measure(BATCH).optimizer_state > 0
    stored = {param.untyped_storage().data_ptr() for param in base.parameters()}
    assert {param.untyped_storage().data_ptr() for param in made.loss.parameters()} >= stored


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)],  # slow where a CPU lacks it
    ids=str,
)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "sparse"])
def test_planned_bytes_are_the_measured_ones(name: str, dtype: torch.dtype, checkpointing: bool) -> None:
    """A step on the meta device keeps and computes exactly what it does on a real one."""
    shape = replace(TINY, dtype=dtype)
    costs = []
    for device in (CPU, torch.device("meta")):
        made = make(name, build_model(shape, device, seed=0), checkpointing=checkpointing)
        with all_scored():
            costs.append(made.measure(random_batch(shape, device, seed=1)))
    assert costs[0] == costs[1]


def test_shiras_mask() -> None:
    """Neurons 4 and 1 first, then the others: 7 entries are two rows of three and one of row 0."""
    mask = neuron_mask(5, 3, 0, torch.tensor([4, 1]), num_entries=7)
    assert mask.int().tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 1, 1]]
    columns = neuron_mask(3, 5, 1, torch.tensor([4, 1]), num_entries=7)
    assert torch.equal(columns, mask.T)
