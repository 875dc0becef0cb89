"""What is known of a model before it is loaded, and what is loaded by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from lape_ds.evaluation.lm import HarnessModel, ModelSettings, ModelSource, load_harness_model
from lape_ds.evaluation.model_facts import model_facts
from tests.tiny_models import tiny_model


@pytest.mark.parametrize(
    ("model_type", "wanted", "expected"),
    [
        ("llama", "sdpa", "sdpa"),
        ("llama", "eager", "eager"),
        ("gemma2", "sdpa", "eager"),
        ("gemma2", "eager", "eager"),
    ],
)
def test_attention_is_the_wanted_one_or_eager_where_there_is_no_sdpa(
    model_type: str, wanted: str, expected: str, tmp_path: Path, bos_tokenizer: PreTrainedTokenizerBase
):
    tiny_model(model_type, vocab_size=len(bos_tokenizer)).save_pretrained(tmp_path)
    bos_tokenizer.save_pretrained(tmp_path)
    assert model_facts(tmp_path, attn_implementation=wanted).attn_implementation == expected
    settings = ModelSettings(attn_implementation=wanted)
    model = load_harness_model(ModelSource("tiny", str(tmp_path)), settings, weights="")
    assert isinstance(model, HarnessModel)
    assert model.config._attn_implementation == expected


def test_special_ids_are_those_that_transformers_would_use(model_folder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    config = AutoConfig.from_pretrained(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 5], "do_sample": True}))
    assert model_facts(folder).special_token_ids == {"bos_token_id": 1, "eos_token_id": [2, 5]}
    path.unlink()
    expected = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    assert model_facts(folder).special_token_ids == expected
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == expected["eos_token_id"]


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        ("bfloat16", None, "bfloat16"),
        ("float32", None, "float32"),
        ("float16", None, "float32"),
        (None, None, "float32"),
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_precision_is_the_wanted_one_or_the_models_own(
    stored: str | None, wanted: str | None, expected: str, model_folder: Path, tmp_path: Path
):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"dtype": stored}))
    assert model_facts(folder, dtype=wanted).dtype == expected
    model = load_harness_model(ModelSource("tiny", str(folder)), ModelSettings(dtype=wanted), weights="")
    assert isinstance(model, HarnessModel)
    assert str(model.model.dtype) == f"torch.{expected}"
