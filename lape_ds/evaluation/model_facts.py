"""What a model's folder says of how the model is asked: known before it is loaded, and recorded with what it scores.

In the evaluation room, beside the models (lm.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.models.utils import resolve_max_length
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from lape_ds.model.loading import load_config, load_tokenizer

# Windows of rolling log-likelihoods are at most this long: the full context of a 128k model would cost its
# memory for nothing, and make bits per byte of two models with unlike contexts incomparable.
LONGEST_WINDOW = 4096


@dataclass(frozen=True)
class ModelFacts:
    """What decides a model's answers beside its weights.

    Attributes:
        dtype: As wanted, or that of its config.json where this is float32 or bfloat16, else float32.
        context_length: Tokens that it takes, prompt and answer together.
        attn_implementation: As wanted, or eager where its class has no sdpa.
        num_heads: Of attention: of queries, and of keys and values.
        special_token_ids: `bos_token_id` and `eos_token_id`, with which it begins and ends what it writes.
    """

    dtype: str
    context_length: int
    attn_implementation: str
    num_heads: tuple[int, int]
    special_token_ids: dict[str, int | list[int] | None]


def model_facts(folder: Path, *, dtype: str | None = None, attn_implementation: str = "sdpa") -> ModelFacts:
    """Reads a model's folder.

    Args:
        folder: Of `resolve_model`.
        dtype: The wanted one, None for the model's own.
        attn_implementation: The wanted one.

    Raises:
        UserError: It lacks its config.json or tokenizer.
    """
    config = load_config(folder)
    dtype = dtype or _own_dtype(config)
    return ModelFacts(
        dtype=dtype,
        context_length=resolve_max_length(config, load_tokenizer(folder)),
        attn_implementation=_attention(config, attn_implementation),
        num_heads=_num_heads(config),
        special_token_ids=_special_token_ids(folder, config),
    )


def _num_heads(config: PretrainedConfig) -> tuple[int, int]:
    text: Any = config.get_text_config()
    num_heads: int = getattr(text, "num_attention_heads", 1)  # none in a state-space model
    return num_heads, getattr(text, "num_key_value_heads", None) or num_heads


def _own_dtype(config: PretrainedConfig) -> str:
    own = str(config.get_text_config().dtype or config.dtype).removeprefix("torch.")
    return own if own in ("float32", "bfloat16") else "float32"


def _attention(config: PretrainedConfig, wanted: str) -> str:
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    return "eager" if wanted == "sdpa" and not model_class._supports_sdpa else wanted


def _special_token_ids(folder: Path, config: PretrainedConfig) -> dict[str, int | list[int] | None]:
    """Of generation_config.json, as transformers reads it: without a readable one, of config.json."""
    try:
        own = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        own = GenerationConfig.from_model_config(config)
    return {"bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id}
