"""spBLEU, which the harness lacks; its chrF++ is the harness's own. What `eval/tasks/_translation` names.

In the evaluation room. A document's value is the pair (reference, hypothesis), as the harness keeps it for BLEU, chrF and
chrF++: the score is the corpus's, and whoever resamples documents recomputes it from such pairs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import sacrebleu
from sacrebleu.tokenizers import tokenizer_spm

from lape_ds.errors import UserError, first_line

_TOKENIZER = "flores200"

Pair = tuple[str, str]


def spbleu(pair: Sequence[str]) -> Sequence[str]:
    """A document's part: its (reference, hypothesis)."""
    return pair


def corpus_spbleu(pairs: Sequence[Pair]) -> float:
    """BLEU over the pieces of FLORES-200's SentencePiece model, in percent.

    Args:
        pairs: (reference, hypothesis) of every document.

    Source: Goyal et al. 2022 (arXiv 2106.03193), with the tokenizer of NLLB (arXiv 2207.04672).
    """
    references, hypotheses = zip(*pairs, strict=True)
    return sacrebleu.corpus_bleu(list(hypotheses), [list(references)], tokenize=_TOKENIZER).score


def require_spbleu() -> None:
    """Sees to it that spBLEU's tokenizer is on this machine, before hours of generation end without it.

    Raises:
        UserError: It is not there and cannot be fetched, or is damaged.
    """
    url = tokenizer_spm.SPM_MODELS[_TOKENIZER]["url"]
    folder: str = tokenizer_spm.SACREBLEU_DIR  # pyright: ignore[reportPrivateImportUsage] # where it looks
    path = Path(folder) / "models" / url.rpartition("/")[2]
    mend = f"fetch {url} where there is a network and put it at {path}"
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON") and not path.is_file():
        raise UserError(f"spBLEU's tokenizer is not at {path}: {mend}")
    try:
        tokenizer_spm.Flores200Tokenizer()
    except (OSError, RuntimeError) as error:
        if path.is_file() and path.stat().st_size:
            what = f"{path} is not spBLEU's tokenizer; delete it"
        else:
            path.unlink(missing_ok=True)  # sacrebleu leaves an empty file behind
            what = f"spBLEU's tokenizer cannot be fetched ({first_line(error)})"
        raise UserError(f"{what}: {mend}") from error
