"""What a model's folder says of how the model is asked: known before it is loaded, and recorded with what it scores.

In the evaluation room, beside the models (lm.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lm_eval.models.utils import resolve_max_length

from lape_ds.model.loading import load_config, load_tokenizer

# Windows of rolling log-likelihoods are at most this long: the full context of a 128k model would cost its
# memory for nothing, and make bits per byte of two models with unlike contexts incomparable.
LONGEST_WINDOW = 4096


@dataclass(frozen=True)
class ModelFacts:
    """What decides a model's answers beside its weights.

    Attributes:
        context_length: Tokens that it takes, prompt and answer together.
    """

    context_length: int


def model_facts(folder: Path) -> ModelFacts:
    """Reads a model's folder.

    Raises:
        UserError: It lacks its config.json or tokenizer.
    """
    config = load_config(folder)
    return ModelFacts(context_length=resolve_max_length(config, load_tokenizer(folder)))
