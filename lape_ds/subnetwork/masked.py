"""The masked engine: a DeepSpeed-compatible optimizer that trains the neurons of a mask and nothing else.

The model runs as it is; this optimizer is handed to `deepspeed.initialize` and keeps everything outside the neuron
mask still under ZeRO 0-3, with and without optimizer offload. See `examples/masked_deepspeed.py` and
`examples/masked_hf_trainer.py`.

A zeroed gradient alone is not a freeze: weight decay still moves the weight, and a norm taken over the dense gradient
clips the wrong amount. So three things happen here. Gradients are zeroed outside the mask by a hook that fires
before DeepSpeed reduces them, so reduction, norm and clipping see only the subnetwork. The inner optimizer never sees
DeepSpeed's flat buffers, only vectors of the masked entries gathered from them: it has no moments for anything else and
decays nothing else. Weights without a masked entry are frozen, so DeepSpeed keeps no master or gradient of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lape_ds.errors import UserError
from lape_ds.model.experts import unhook_activations
from lape_ds.subnetwork.anchor import L2Anchor
from lape_ds.subnetwork.entries import Block, Mask, entry_masks, scatter, write_part
from lape_ds.subnetwork.lion import Lion
from lape_ds.subnetwork.shards import Shard, find_shards, stored_part

# Each entry's update must depend on that entry alone: anything with a norm, a factored or a matrix-shaped state (LAMB,
# Adafactor, Muon) would mean something else on a vector of gathered entries. By exact type: a subclass may do anything.
ELEMENTWISE_OPTIMIZERS: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.AdamW,
    torch.optim.Adam,
    torch.optim.SGD,
    Lion,
)

_HOOK = "_lape_ds_mask_hook"  # attribute of a parameter: the handle of its gradient hook


@dataclass(frozen=True)
class EntryRange:
    """What this rank holds of one weight's masked entries.

    Attributes:
        name: The weight's name.
        start: Index of the first of them among the weight's entries in row-major order.
        masters: fp32 [n], a copy.
        state: The inner optimizer's tensors for these entries, each [n] (e.g. `exp_avg`), a view; empty before the first step.
        replicated: Every rank holds the same (stage 0).
    """

    name: str
    start: int
    masters: Tensor
    state: dict[str, Tensor]
    replicated: bool


@dataclass
class _Gathered:
    """The masked entries of one of DeepSpeed's buffers, as the inner optimizer sees them."""

    buffer: Tensor
    parts: list[tuple[Mask, Shard, list[Block]]]
    vector: (
        nn.Parameter
    )  # fp32 [n]; empty between steps, only its identity lasts: the inner state hangs on it
    start: Tensor | None = None  # fp32 [n], where the entries began; with an L2 anchor

    @property
    def num_entries(self) -> int:
        return sum(block.num_entries for _, _, blocks in self.parts for block in blocks)

    def gather(self, flat: Tensor) -> Tensor:
        return torch.cat([block.gather(flat) for _, _, blocks in self.parts for block in blocks])

    def scatter(self, flat: Tensor, vector: Tensor) -> None:
        scatter((block for _, _, blocks in self.parts for block in blocks), flat, vector)


class MaskedOptimizer(torch.optim.Optimizer):
    """Wraps an elementwise optimizer so that only the neurons of a mask train.

    Construct it before `deepspeed.initialize` (parameters may already be partitioned by `zero.Init`) and pass it as the
    client optimizer, with `masked_config` applied to the DeepSpeed configuration:

        optimizer = MaskedOptimizer(model, neurons.indices["mlt_Latn"], torch.optim.AdamW, lr=1e-4, weight_decay=0.01)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=masked_config(config))

    It freezes (`requires_grad_(False)`) every parameter without a masked entry; a second one on the same model takes over
    from the first. Bits outside the mask stay those of the
    base model after any number of steps. Inner state: for AdamW 8 bytes for each masked entry that this rank owns.

    Args:
        model: A causal language model of a supported architecture.
        neurons: integer [n, 2] of (layer, index), e.g. `NeuronSet.indices[code]`.
        optimizer: One of `ELEMENTWISE_OPTIMIZERS`.
        **settings: Its keyword arguments (`lr`, `weight_decay`, …).

    Raises:
        UserError: The optimizer is not elementwise, the architecture is not known, or the neurons do not fit the model.

    Source: arXiv 2510.13580 (only the subnetwork's weights train); the masking under ZeRO is ours.
    """

    def __init__(
        self,
        model: nn.Module,
        neurons: Tensor,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        **settings: Any,
    ) -> None:
        if optimizer not in ELEMENTWISE_OPTIMIZERS:
            allowed = ", ".join(cls.__name__ for cls in ELEMENTWISE_OPTIMIZERS)
            raise UserError(
                f"optimizer {optimizer.__name__} cannot train a neuron mask: only elementwise optimizers can ({allowed})"
            )
        self.masks = entry_masks(model, neurons)
        unhook_activations(model)
        named = dict(model.named_parameters())
        for name, param in named.items():
            param.requires_grad_(name in self.masks)
        self._params = [named[name] for name in self.masks]
        self._mask_of = {id(named[name]): mask for name, mask in self.masks.items()}
        self.inner_class = optimizer
        build: Callable[..., torch.optim.Optimizer] = optimizer
        self._inner = build([_empty_vector(torch.device("cpu"))], **settings)
        self._gathered: dict[int, _Gathered] | None = None
        self._pending: dict[str, Any] | None = None  # a state_dict that waits for DeepSpeed's buffers
        self._gradients_seen = False
        self._anchor: L2Anchor | None = None
        super().__init__(
            self._params,
            {key: value for key, value in self._inner.param_groups[0].items() if key != "params"},
        )
        self._group = self.param_groups[0]  # DeepSpeed swaps lists around it; the dict itself stays
        for param in self._params:
            earlier = getattr(
                param, _HOOK, None
            )  # of another MaskedOptimizer: together they would let both masks' share through
            if earlier is not None:
                earlier.remove()
            setattr(param, _HOOK, param.register_hook(self._zero_outside(self._mask_of[id(param)])))

    def _zero_outside(self, mask: Mask) -> Callable[[Tensor], Tensor]:
        # A tensor hook sees the full-shape gradient in every stage and runs before DeepSpeed's reduction hook.
        def hook(grad: Tensor) -> Tensor:
            nonlocal mask
            self._gradients_seen = True
            if mask.index.device != grad.device:  # once: a copy in each backward would stall a GPU
                mask = mask.on(grad.device)
            return mask.keep_only(grad)

        return hook

    def __getstate__(self) -> dict[str, Any]:
        raise UserError(
            "a MaskedOptimizer cannot be copied or pickled: it hangs on one model's parameters; use state_dict()"
        )

    num_added = 0  # nothing is put into the model

    @property
    def num_entries(self) -> int:
        """Trained weights, over all ranks."""
        return sum(mask.num_entries for mask in self.masks.values())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates the masked entries of the buffers that DeepSpeed has put into `param_groups`.

        Under ZeRO-3 DeepSpeed calls this once per sub-group, under ZeRO 1 and 2 once per parameter group. Calls before
        the first backward do nothing: DeepSpeed's stage 0 in bf16 steps once on zero gradients while it is set up, which
        would decay the weights and count a step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._gradients_seen:
            return loss
        gathered = self.bind()
        active = [
            gathered[id(buffer)]
            for group in self.param_groups
            for buffer in group["params"]
            if id(buffer) in gathered
        ]
        self._inner_group.update({key: value for key, value in self._group.items() if key != "params"})
        for part in active:
            if part.buffer.grad is not None:
                part.vector.data = part.gather(part.buffer.detach().view(-1))
                part.vector.grad = part.gather(part.buffer.grad.view(-1)).to(part.vector.dtype)
        self._inner.step()
        for part in active:
            if part.vector.grad is not None:
                if self._anchor is not None and part.start is not None:
                    self._anchor.pull(part.vector.data, part.start, self._group["lr"])
                part.scatter(part.buffer.detach().view(-1), part.vector.data)
                part.vector.grad = None
                part.vector.data = part.vector.data.new_empty(0)
        return loss

    @property
    def _inner_group(self) -> dict[str, Any]:
        return self._inner.param_groups[0]

    def bind(self) -> dict[int, _Gathered]:
        """Finds the masked entries in DeepSpeed's buffers (once, after `deepspeed.initialize`) and checks the places found."""
        if self._gathered is None:
            self._gathered = {}
            for shard in find_shards([self._group], [self._params]):
                shard.verify()
                mask = self._mask_of[id(shard.parameter)]
                blocks = mask.blocks(
                    shard.start,
                    shard.start + shard.numel,
                    offset=shard.buffer_start,
                    device=shard.buffer.device,
                )
                if blocks:
                    vector = _empty_vector(shard.buffer.device)
                    part = self._gathered.setdefault(id(shard.buffer), _Gathered(shard.buffer, [], vector))
                    part.parts.append((mask, shard, blocks))
            self._inner_group["params"] = [part.vector for part in self._gathered.values()]
            if self._pending is not None:
                pending, self._pending = self._pending, None
                self._restore(pending)
        return self._gathered

    def shards(self) -> list[Shard]:
        """This rank's parts of the weights in which something trains, also those without a masked entry on this rank."""
        return find_shards([self._group], [self._params])

    def entry_ranges(self) -> Iterator[EntryRange]:
        """This rank's masked entries by weight, with masters and moments: what a checkpoint holds."""
        for part in self.bind().values():
            state = self._inner.state.get(part.vector, {})
            tensors = {key: value for key, value in state.items() if torch.is_tensor(value) and value.dim()}
            flat = part.buffer.detach().view(-1)
            begin = 0
            for mask, shard, blocks in part.parts:
                count = sum(block.num_entries for block in blocks)
                yield EntryRange(
                    name=mask.name,
                    start=mask.entries_before(shard.start),
                    masters=torch.cat([block.gather(flat) for block in blocks]),
                    state={key: value[begin : begin + count] for key, value in tensors.items()},
                    replicated=shard.replicated,
                )
                begin += count

    def state_scalars(self) -> dict[str, Tensor]:
        """What the inner optimizer keeps once for all entries (Adam's `step`); empty before the first step."""
        return scalar_state(self._inner)

    @torch.no_grad()
    def write_weights(self, read: Callable[[str, int, int], Tensor]) -> None:
        """Sets the trained weights before `deepspeed.initialize` copies its masters from them.

        Args:
            read: `read(name, start, stop)` gives fp32 [stop - start], that range of a weight's trained entries; rounded
                to the model's dtype here.
        """
        for param in self._params:
            mask = self._mask_of[id(param)]
            with stored_part(param) as (start, values):
                write_part(mask, values, start, partial(read, mask.name))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights in which something trains."""
        return self._params

    @torch.no_grad()
    def anchor_to(self, anchor: L2Anchor) -> None:
        """Pulls what trains to where it began, after every step. Once, after `deepspeed.initialize`.

        Args:
            anchor: Made of `parameters` before it.
        """
        self._anchor = anchor
        for part in self.bind().values():
            starts = []
            for mask, shard, _ in part.parts:
                values = anchor.values(shard)
                blocks = mask.blocks(shard.start, shard.start + shard.numel, offset=0, device=values.device)
                starts += [block.gather(values) for block in blocks]
            part.start = torch.cat(starts)

    @torch.no_grad()
    def load_entries(
        self, read: Callable[[str, int, int], Mapping[str, Tensor]], scalars: Mapping[str, Tensor]
    ) -> None:
        """Restores this rank's entries, wherever and by however many ranks they were saved.

        Args:
            read: `read(name, start, stop)` gives tensors [stop - start] for that range of a weight's masked entries:
                the inner optimizer's state by name and, under "master", the fp32 masters where these are to be set too.
            scalars: As `state_scalars` gave them.
        """
        for part in self.bind().values():
            found: dict[str, list[Tensor]] = {}
            for mask, shard, blocks in part.parts:
                start = mask.entries_before(shard.start)
                count = sum(block.num_entries for block in blocks)
                for key, value in read(mask.name, start, start + count).items():
                    found.setdefault(key, []).append(value.to(device=part.buffer.device, dtype=torch.float32))
            state = {key: torch.cat(values) for key, values in found.items()}
            masters = state.pop("master", None)
            if masters is not None:
                part.scatter(part.buffer.detach().view(-1), masters)
            self._inner.state[part.vector] = state | {key: value.clone() for key, value in scalars.items()}
            self._gradients_seen = True  # moments from before: the next step is a real one

    def state_dict(self) -> dict[str, Any]:
        """This rank's inner state, by weight and entry range; what DeepSpeed's `save_checkpoint` stores."""
        return {
            "entries": [
                {
                    "name": held.name,
                    "start": held.start,
                    "num_entries": len(held.masters),
                    "state": held.state,
                }
                for held in self.entry_ranges()
            ],
            "scalars": self.state_scalars(),
            "param_groups": [{key: value for key, value in self._group.items() if key != "params"}],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave, on the same number of ranks and the same ZeRO stage.

        DeepSpeed calls this before it restores its own masters, so the entries are placed at the next step.
        """
        self._group.update(state_dict["param_groups"][0])
        if self._gathered is None:
            self._pending = state_dict
        else:
            self._restore(state_dict)

    def _restore(self, state_dict: dict[str, Any]) -> None:
        saved = {
            (held["name"], held["start"], held["num_entries"]): held["state"]
            for held in state_dict["entries"]
        }

        def read(name: str, start: int, stop: int) -> dict[str, Tensor]:
            if (name, start, stop - start) not in saved:
                raise UserError(
                    f"this DeepSpeed checkpoint does not hold entries {start}:{stop} of {name}: it was saved with another neuron "
                    "set, number of ranks or ZeRO stage; resume with the same ones, or use lape-ds checkpoints, which do not mind"
                )
            return saved[name, start, stop - start]

        self.load_entries(read, state_dict["scalars"])


def scalar_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer keeps once for all entries; the same for every buffer, since all step together."""
    for state in optimizer.state.values():
        return {key: value for key, value in state.items() if torch.is_tensor(value) and not value.dim()}
    return {}


def masked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a DeepSpeed configuration with the settings that a `MaskedOptimizer` needs.

    Raises:
        UserError: A setting under which masters and weights cannot be matched.
    """
    zero: Mapping[str, Any] = config.get("zero_optimization", {})
    if config.get("checkpoint", {}).get("load_universal"):
        raise UserError(
            "checkpoint.load_universal: true needs moments for whole weights, which a masked optimizer does not keep; remove it "
            "(on the same topology DeepSpeed's own checkpoints work)"
        )
    if zero.get("round_robin_gradients"):
        raise UserError(
            "zero_optimization.round_robin_gradients: true reorders DeepSpeed's buffers without telling the optimizer, so the "
            "neuron mask would hit other weights; remove it"
        )
    if zero.get("zero_quantized_weights"):
        raise UserError(
            "zero_optimization.zero_quantized_weights: true keeps weights that differ from their masters, so a neuron mask could "
            "not leave the others untouched; remove it"
        )
    if zero.get("offload_optimizer", {}).get("device") == "nvme":
        raise UserError(
            "zero_optimization.offload_optimizer.device: nvme swaps masters out of reach of checkpoints; a mask's own state is "
            "small: use cpu (parameters may go to nvme)"
        )
    if zero.get("stage") == 3:
        # DeepSpeed makes "leaf modules" of some mixtures of experts: it reduces their gradients in one hook, which fires before
        # the gradients are there if no input of the module needs one, as in the first layer that trains. Nothing needs
        # it: since transformers 5 all experts are one parameter, which every forward uses.
        leaf = {"classes": [], **zero.get("leaf_module", {})}
        config = {**config, "zero_optimization": {**zero, "leaf_module": leaf}}
    # DeepSpeed allows optimizers by exact type, and under offload insists on its own compiled one.
    return {**config, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}


def _empty_vector(device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(0, device=device))
