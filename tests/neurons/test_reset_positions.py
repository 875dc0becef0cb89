"""Documents of a block that are kept apart are counted as if each were run alone, by every kind of attention."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, modeling_flash_attention_utils

from lape_ds.corpora.streams import Block
from lape_ds.errors import UserError
from lape_ds.neurons.counting import check_can_reset_positions, count_activations
from lape_ds.neurons.counts import CountedBlocks, Counts, CountSettings
from tests.neurons.blocks import random_blocks
from tests.tiny_models import MODEL_TYPES, tiny_model

SETTINGS = CountSettings("mlt_Latn", "tiny", "f" * 64, 12, "float64", reset_positions=True)
RESETTING = [name for name in MODEL_TYPES if name not in ("bloom", "opt")]


def count(model: PreTrainedModel, blocks: list[Block], settings: CountSettings = SETTINGS) -> Counts:
    part = CountedBlocks("corpus", 0, len(blocks), 12 * len(blocks))
    return count_activations(model, blocks, batch_size=2, settings=settings, part=part)


def documents(block: Block) -> list[Block]:
    """Each document, or piece of one, as a block of its own; padding, which nothing sees, with the last."""
    starts = [*(block.positions == 0).nonzero().flatten().tolist(), len(block.positions)]
    fields = vars(block)
    return [
        Block(**{name: tensor[start:stop] for name, tensor in fields.items()})
        for start, stop in pairwise(starts)
    ]


def alone(model: PreTrainedModel, blocks: list[Block]) -> Tensor:
    """int64 [16, L, I], from documents one by one, in the usual way."""
    total = torch.zeros((), dtype=torch.int64)
    for block in blocks:
        for document in documents(block):
            total = total + count(model, [document], replace(SETTINGS, reset_positions=False)).active
    return total


@pytest.mark.parametrize(
    ("model_type", "attention"),
    [(name, kind) for name in RESETTING for kind in ("eager", "sdpa") if (name, kind) != ("gemma2", "sdpa")],
)
def test_as_each_document_alone(model_type: str, attention: str) -> None:
    model = tiny_model(model_type, dtype=torch.float64)
    blocks = random_blocks(5, 12, num_padding=3)
    expected = alone(model, blocks)
    model.set_attn_implementation(attention)
    assert torch.equal(count(model, blocks).active, expected)
    apart = count(model, blocks, replace(SETTINGS, reset_positions=False))
    assert not torch.equal(apart.active, expected)  # else the test shows nothing


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "phi3", "gpt_neox"])
def test_flash_attention_is_told_where_documents_end(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels need a GPU: in their place stand slow ones, called as transformers calls them."""

    def attend(
        q: Tensor, k: Tensor, v: Tensor, *, causal: bool, softmax_scale: float | None, **_: Any
    ) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[-2] // x.shape[-2], dim=-2) for x in (k, v))
        q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale)
        return out.transpose(-3, -2)

    def attend_packed(
        q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **given: Any
    ) -> Tensor:
        ends = cu_seqlens_q.tolist()
        pieces = [slice(start, stop) for start, stop in pairwise(ends)]
        return torch.cat([attend(q[piece], k[piece], v[piece], **given) for piece in pieces])

    def flash_keywords(**given: Any) -> dict[str, Any]:
        return {"causal": given["is_causal"], "softmax_scale": given["softmax_scale"]}

    def kernels(*_: Any, **__: Any) -> Any:
        return (attend, attend_packed, None, None, None), (flash_keywords, flash_keywords)

    model = tiny_model(model_type, dtype=torch.float64)
    blocks = random_blocks(5, 12, num_padding=3)
    expected = alone(model, blocks)
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", kernels)
    model.config._attn_implementation = "flash_attention_2"
    assert torch.equal(count(model, blocks).active, expected)


@pytest.mark.parametrize("model_type", ["bloom", "opt"])
def test_a_model_that_does_not_part_documents_is_refused(model_type: str) -> None:
    with pytest.raises(UserError, match=f"'{model_type}' transformers does not keep the documents"):
        check_can_reset_positions(tiny_model(model_type))
