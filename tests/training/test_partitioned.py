"""ZeRO-3's parts read from the files are those of the whole model, whatever the files look like; mistakes are one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.processes import run_ranks
from tests.tiny_models import MODEL_TYPES, tiny_model

GATE = "model.layers.1.mlp.gate_proj.weight"


def run_cases(folder: Path, cases: list[dict[str, Any]], world_size: int) -> list[dict[str, Any]]:
    """What each rank found, by case."""
    path = folder / f"cases{world_size}.json"
    path.write_text(json.dumps(cases))
    run_ranks("tests.training.partition_worker", [str(path)], world_size=world_size)
    return [json.loads(path.with_name(f"{path.stem}-{rank}.json").read_text()) for rank in range(world_size)]


def rewrite(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    weights = load_file(folder / "model.safetensors") | changes
    kept = {name: weight.clone() for name, weight in weights.items() if weight is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def make_folders(root: Path) -> dict[str, Path]:
    """Model folders of every kind; rows, columns and biases of odd sizes (tests/tiny_models.py)."""
    for model_type in MODEL_TYPES:
        tiny_model(model_type).save_pretrained(root / model_type)
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(root / "tied")
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(root / "bf16")
    tiny_model("qwen2", tie_word_embeddings=False).save_pretrained(root / "shards", max_shard_size="4KB")
    assert len(list((root / "shards").glob("*.safetensors"))) > 3
    long = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    long |= {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 1.9, 4.3, 7.7]}
    tiny_model("phi3", rope_parameters=long, num_attention_heads=2).save_pretrained(root / "longrope")
    # What is not the model's weights one to one.
    (root / "pickled").mkdir()
    llama = tiny_model("llama", tie_word_embeddings=True)
    llama.config.save_pretrained(root / "pickled")
    torch.save(llama.state_dict(), root / "pickled" / "pytorch_model.bin")
    embedding = load_file(root / "tied" / "model.safetensors")["model.embed_tokens.weight"]
    for name, head in (("tied-twice", embedding), ("tied-unlike", 2 * embedding)):
        shutil.copytree(root / "tied", root / name)
        rewrite(root / name, {"lm_head.weight": head})
    shutil.copytree(root / "tied", root / "tied-by-head")
    rewrite(root / "tied-by-head", {"model.embed_tokens.weight": None, "lm_head.weight": embedding})
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("folders")
    folders = make_folders(root / "models")
    return {world_size: run_cases(root, all_cases(folders, world_size), world_size) for world_size in (1, 3)}


def all_cases(folders: dict[str, Path], world_size: int) -> list[dict[str, Any]]:
    cases = [
        {"name": f"{name}-{dtype}", "folders": [str(folder)], "dtype": dtype}
        for name, folder in folders.items()
        for dtype in ("float32", "bfloat16")
        if dtype == "bfloat16" or name not in MODEL_TYPES  # to bf16 for all, with and without a cast for some
    ]
    hierarchical = {"config": {"zero_optimization": {"zero_hpz_partition_size": world_size}}}
    for section in ({"offload_parameters": "cpu"}, hierarchical):
        case = {"folders": [str(folders["shards"])], "dtype": "bfloat16", "deepspeed": section}
        cases.append({"name": str(section), **case})
    return cases


@pytest.mark.parametrize("world_size", [1, 3])
def test_parts_and_buffers_are_those_of_the_whole_model(
    found: dict[int, list[dict[str, Any]]], world_size: int
) -> None:
    for rank, by_case in enumerate(found[world_size]):
        assert len(by_case) == len(MODEL_TYPES) + 2 * 8 + 2
        wrong = {name: case for name, case in by_case.items() if case != {"wrong": []}}
        assert not wrong, f"rank {rank}"


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing weight": (lambda folder: rewrite(folder, {GATE: None}), "lacks 1 weights"),
    "wrong shape": (
        lambda folder: rewrite(folder, {GATE: torch.zeros(22, 16)}),
        "layers.1.mlp.gate_proj.weight has shape [22, 16] in the checkpoint and [23, 16] by config.json",
    ),
    "truncated": (cut, "not a readable checkpoint"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights there"),
}


def test_a_mistake_is_one_line_on_every_rank(tmp_path: Path) -> None:
    """On all ranks, and on one of them alone: its node's copy of the files is damaged."""
    tiny_model("llama").save_pretrained(tmp_path / "good")
    cases = []
    for name, (spoil, _) in MISTAKES.items():
        shutil.copytree(tmp_path / "good", tmp_path / name)
        spoil(tmp_path / name)
        cases.append({"name": name, "folders": [str(tmp_path / name)], "dtype": "float32"})
        both = [str(tmp_path / "good"), str(tmp_path / name)]
        cases.append({"name": f"{name} on rank 1", "folders": both, "dtype": "float32"})
    first, second = run_cases(tmp_path, cases, 2)
    for name, (_, message) in MISTAKES.items():
        for errors in (first, second):
            assert message in errors[name]["error"]
            assert "\n" not in errors[name]["error"]
        assert first[f"{name} on rank 1"]["error"].startswith("rank 1 on ")
        assert str(tmp_path / name) in second[f"{name} on rank 1"]["error"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """170 MB of bf16, 340 MB in a run in fp32; no weight is more than a twentieth of it."""
    sizes = {"hidden_size": 512, "head_dim": 64, "intermediate_size": 1408, "vocab_size": 8000}
    folder = tmp_path_factory.mktemp("large")
    model = tiny_model("llama", dtype=torch.bfloat16, num_hidden_layers=24, num_attention_heads=8, **sizes)
    model.save_pretrained(folder, max_shard_size="50MB")
    return folder


@pytest.mark.parametrize(("stage", "world_size", "share"), [(3, 2, 0.5), (2, 1, 1.0)])
def test_no_rank_holds_more_than_its_part(large: Path, stage: int, world_size: int, share: float) -> None:
    """From the first byte to an engine that is ready: the whole model, or half of it, and a seventh for everything else."""
    run_ranks("tests.training.memory_worker", [str(large), str(stage), str(large)], world_size=world_size)
    whole = 2 * sum(path.stat().st_size for path in large.glob("*.safetensors"))
    for rank in range(world_size):
        peak = json.loads((large / f"{stage}-{rank}.json").read_text())
        assert share * whole < peak["loaded"] * 1.05, "what was loaded was not seen"
        assert peak["ready"] < (share + 0.15) * whole
