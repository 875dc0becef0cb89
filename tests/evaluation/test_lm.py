"""What is handed to the harness's own model classes, and what is refused before anything is loaded."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from lape_ds.errors import UserError
from lape_ds.evaluation import lm, model_facts
from lape_ds.evaluation.lm import ModelSettings, ModelSource, check_backend, vllm_arguments
from tests.evaluation.conftest import MAX_LENGTH as CONTEXT


def harness_source(module: str) -> ast.Module:
    """Of a module that cannot be imported here."""
    found = find_spec("lm_eval")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "models" / f"{module}.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def test_vllm_gets_arguments_that_the_harness_knows(model_folder: Path):
    """vLLM needs a GPU: only the names can be held against the installed harness."""
    tree = harness_source("vllm_causallms")
    vllm = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "VLLM")
    methods = {node.name: node for node in vllm.body if isinstance(node, ast.FunctionDef)}
    known = {argument.arg for argument in methods["__init__"].args.args}
    arguments = vllm_arguments(ModelSource("tiny", str(model_folder)), ModelSettings("vllm", "bfloat16"))
    assert set(arguments) <= known
    assert arguments["dtype"] == "bfloat16"
    assert arguments["max_length"] == CONTEXT
    # What `_Quiet` overrides, and the attribute by which it keeps BOS out of rolling windows.
    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until", "_loglikelihood_tokens"):
        assert "disable_tqdm" in {argument.arg for argument in methods[name].args.args}
    assert "self._max_length" in ast.unparse(methods["max_length"])
    assert "self.add_bos_token" in ast.unparse(methods["tok_encode"])


@pytest.mark.parametrize(
    ("num_heads", "num_devices", "expected"),
    [
        ((32, 8), 8, 8),
        ((14, 2), 8, 2),
        ((32, 8), 0, 1),
        ((12, 12), 8, 6),
        ((32, 2), 8, 8),
        ((40, 10), 8, 5),
        ((9, 3), 2, 1),
    ],
)
def test_vllm_divides_a_model_as_its_heads_allow(
    num_heads: tuple[int, int],
    num_devices: int,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    LlamaConfig(
        num_attention_heads=num_heads[0], num_key_value_heads=num_heads[1], hidden_size=16 * num_heads[0]
    ).save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    monkeypatch.setattr(model_facts, "load_tokenizer", lambda _: None)
    arguments = lm.vllm_arguments(ModelSource("tiny", str(tmp_path)), ModelSettings("vllm"))
    assert arguments["tensor_parallel_size"] == expected


def test_vllm_is_refused_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sources, wanted = [ModelSource("tiny", str(tmp_path))], ModelSettings("vllm")
    with pytest.raises(
        UserError, match=r"by itself, and there are 2 ranks: start `lape-ds eval` as one process"
    ):
        check_backend(wanted, sources, num_ranks=2)
    packed = [ModelSource("tiny", str(tmp_path), pack=tmp_path / "pack.safetensors")]
    with pytest.raises(UserError, match=r"tiny: vLLM cannot apply .*lape-ds export"):
        check_backend(wanted, packed, num_ranks=1)
    monkeypatch.setattr(lm, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"vllm is not installed here: `pip install vllm`, or use eval.backend=hf"
    ):
        check_backend(wanted, sources, num_ranks=1)
    check_backend(ModelSettings("hf"), packed, num_ranks=2)
