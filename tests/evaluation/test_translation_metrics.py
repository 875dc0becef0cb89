"""spBLEU: over the pieces of its model, which must be there before anything is generated."""

from __future__ import annotations

from pathlib import Path

import pytest
import sacrebleu
from sacrebleu.tokenizers import tokenizer_spm
from sentencepiece import SentencePieceProcessor

from lape_ds.errors import UserError
from lape_ds.evaluation.translation_metrics import corpus_spbleu, require_spbleu

PAIRS = [
    ("Wieħed, tnejn, tlieta", "Wieħed, tnejn, erbgħa"),
    ("Jannar, Frar, Marzu u April", "Jannar u Frar u Marzu u April"),
]


@pytest.mark.usefixtures("spbleu_model")
def test_it_is_bleu_over_pieces(spbleu_folder: Path):
    require_spbleu()
    pieces = SentencePieceProcessor(model_file=str(spbleu_folder / "models" / "flores200sacrebleuspm"))
    references, hypotheses = (
        [" ".join(pieces.EncodeAsPieces(text)) for text in side] for side in zip(*PAIRS, strict=True)
    )
    expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none", force=True).score
    assert 0 < expected < 100
    assert corpus_spbleu(PAIRS) == pytest.approx(expected)


def test_without_its_model_it_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    # Port 9 (discard) of this machine: nobody answers.
    models = {"flores200": {"url": "http://127.0.0.1:9/flores200sacrebleuspm", "signature": "flores200"}}
    monkeypatch.setattr(tokenizer_spm, "SPM_MODELS", models)
    path = tmp_path / "models" / "flores200sacrebleuspm"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=rf"tokenizer is not at {path}: fetch http://127.*put it at {path}"):
        require_spbleu()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for _ in range(2):  # what a failed attempt leaves behind is not taken for the model
        with pytest.raises(UserError, match=r"cannot be fetched \(.*refused.*\): fetch http://127") as caught:
            require_spbleu()
        assert "\n" not in str(caught.value)
    path.write_bytes(b"<html>busy</html>")
    with pytest.raises(UserError, match=rf"{path} is not spBLEU's tokenizer; delete it"):
        require_spbleu()
