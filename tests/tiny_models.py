"""Tiny random causal language models, one of every supported architecture, for tests of any room."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 61
HIDDEN_SIZE = 16
NUM_LAYERS = 3

_COMMON: dict[str, object] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GATED: dict[str, object] = {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 23}
_MIXTURE: dict[str, object] = {
    "num_key_value_heads": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "output_router_logits": False,  # no auxiliary loss
}
# An odd intermediate size everywhere but in BLOOM, which fixes it at 4 × hidden.
_EXTRA: dict[str, dict[str, object]] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma": _GATED,
    "gemma2": _GATED,
    "gemma3_text": _GATED,
    "cohere": _GATED,
    "cohere2": _GATED,
    "olmo": _GATED,
    "olmo2": _GATED,
    "olmo3": _GATED,
    "granite": _GATED,
    "smollm3": _GATED,
    "phi3": _GATED,
    "opt": {"ffn_dim": 23, "word_embed_proj_dim": HIDDEN_SIZE},
    "bloom": {},
    "phi": {"intermediate_size": 23},
    "gpt_neox": {"intermediate_size": 23},
    "mixtral": _MIXTURE | {"intermediate_size": 23},
    "qwen2_moe": _MIXTURE | {"moe_intermediate_size": 23, "shared_expert_intermediate_size": 9},
    "qwen3_moe": _MIXTURE | {"moe_intermediate_size": 23, "head_dim": 8},
    "olmoe": _MIXTURE | {"intermediate_size": 23},
}
MODEL_TYPES = tuple(_EXTRA)
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
NUM_EXPERTS = 4


def tiny_model(
    model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: object
) -> PreTrainedModel:
    """A random model in eval mode: 3 layers, hidden size 16, 23 neurons a layer (BLOOM 64), vocabulary 61.

    Mixtures have 4 experts of 23 neurons, 2 for each token. Weights and biases are drawn wide enough that gates are
    positive on some tokens and negative on others.
    """
    config = AutoConfig.for_model(model_type, **(_COMMON | _EXTRA[model_type] | overrides))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if model_type in MIXTURES:
        model.set_experts_implementation("eager")  # grouped_mm takes no odd sizes on a CPU
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.normal_(0.0, 0.2, generator=generator)
    return model.to(dtype).eval()
