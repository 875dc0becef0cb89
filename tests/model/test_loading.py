"""Resolving, loading and fingerprinting model folders; what the user must mend is one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest.mock import Mock

import httpx2
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from lape_ds.errors import UserError
from lape_ds.model import loading
from lape_ds.model.loading import (
    fingerprint,
    load_model,
    load_skeleton,
    load_tokenizer,
    resolve_model,
)
from tests.tiny_models import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_folder_is_itself(folder: Path) -> None:
    assert resolve_model(str(folder)) == folder


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config.json"):
        resolve_model(str(tmp_path))
    with pytest.raises(UserError, match=r"no config.json"):
        resolve_model("./not/there")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "gated.*accept its terms at https://huggingface.co/owner/name.*HF_TOKEN"),
        (RepositoryNotFoundError, "neither a folder here nor a model on the hub"),
        (RevisionNotFoundError, "no such revision"),
    ],
)
def test_hub_refusals(monkeypatch: pytest.MonkeyPatch, error: type[HfHubHTTPError], message: str) -> None:
    response = Mock(headers={})
    monkeypatch.setattr(
        loading, "snapshot_download", Mock(side_effect=error("403\nrequest id", response=response))
    )
    with pytest.raises(UserError, match=message) as caught:
        resolve_model("owner/name", "v1")
    assert "\n" not in str(caught.value)


def test_offline_without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "snapshot_download", Mock(side_effect=LocalEntryNotFoundError("not found")))
    with pytest.raises(UserError, match="the hub cannot be reached"):
        resolve_model("owner/name")


@pytest.mark.parametrize(
    "error", [httpx2.ReadTimeout("read timed out"), OSError(28, "No space left on device")]
)
def test_a_fetch_that_breaks_off_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(loading, "snapshot_download", Mock(side_effect=error))
    with pytest.raises(
        UserError, match=f"could not be fetched into .*{re.escape(str(error))}.*; mend that"
    ) as caught:
        resolve_model("owner/name")
    assert "\n" not in str(caught.value)


def test_hub_fetches_pickled_weights_only_where_there_are_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    download = Mock(return_value=str(tmp_path))
    monkeypatch.setattr(loading, "snapshot_download", download)
    resolve_model("owner/name")
    (tmp_path / "model.safetensors").touch()
    resolve_model("owner/name")
    asked = [call.kwargs["allow_patterns"][-1] for call in download.call_args_list]
    assert asked == ["*.safetensors", "*.bin", "*.safetensors"]


def test_load_model(folder: Path) -> None:
    model = load_model(folder, dtype="bfloat16", attn_implementation="sdpa")
    assert model.dtype == torch.bfloat16
    assert not model.training
    expected = tiny_model("llama").state_dict()
    assert all(torch.equal(value, expected[name].bfloat16()) for name, value in model.state_dict().items())


def test_skeleton_has_shapes_and_no_weights(folder: Path) -> None:
    skeleton = load_skeleton(folder)
    assert skeleton.model.layers[0].mlp.gate_proj.weight.shape == (23, 16)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    buffers = dict(load_model(folder, dtype="float32", attn_implementation="sdpa").named_buffers())
    assert buffers
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in skeleton.named_buffers())


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_weight_is_refused(folder: Path) -> None:
    """transformers alone would put random numbers there."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights, e.g. model.layers.1.mlp.up_proj.weight"):
        load_model(folder, dtype="float32", attn_implementation="eager")


def test_weight_of_another_shape_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(22, 16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"up_proj.weight has shape \[22, 16\] in the checkpoint and \[23, 16\]"
    ):
        load_model(folder, dtype="float32", attn_implementation="eager")


def test_weights_go_to_the_device_asked_for(folder: Path) -> None:
    model = load_model(folder, dtype="float32", attn_implementation="eager", device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_damaged_checkpoint_is_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="model there cannot be loaded"):
        load_model(folder, dtype="float32", attn_implementation="eager")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        fingerprint(folder)


def test_models_of_another_kind_are_refused(folder: Path) -> None:
    _edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match="quantised"):
        load_skeleton(folder)
    AutoConfig.for_model("t5").save_pretrained(folder)
    with pytest.raises(UserError, match="'t5' is no causal language model"):
        load_skeleton(folder)
    _edit_config(folder, model_type="nonesuch")
    with pytest.raises(UserError, match="nonesuch"):
        load_skeleton(folder)


def test_an_attention_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    """transformers has none of torch's for BLOOM."""
    tiny_model("bloom").config.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="model there cannot be built: BloomForCausalLM does not support an attention"
    ):
        load_skeleton(tmp_path, attn_implementation="sdpa")
    assert load_skeleton(tmp_path, attn_implementation="eager")


def test_folder_without_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="tokenizer there cannot be loaded"):
        load_tokenizer(folder)


def test_fingerprint_does_not_depend_on_shards_or_format(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="4KB")
    (tmp_path / "bin").mkdir()
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "many") == fingerprint(tmp_path / "bin")
    assert len(fingerprint(tmp_path / "one")) == 64


def test_fingerprint_changes_with_one_bit(folder: Path) -> None:
    before = fingerprint(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"].view(torch.int32)[3, 4] ^= 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) != before


def test_fingerprint_changes_with_names(folder: Path) -> None:
    """Two tensors of one shape that change places."""
    before = fingerprint(folder)
    weights = load_file(folder / "model.safetensors")
    gate, up = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
    weights[gate], weights[up] = weights[up], weights[gate]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) != before


def test_fingerprint_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights there"):
        fingerprint(folder)


def test_fingerprint_with_a_shard_missing_is_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="4KB")
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(UserError, match=r"is missing, which model.safetensors.index.json names"):
        fingerprint(tmp_path)
