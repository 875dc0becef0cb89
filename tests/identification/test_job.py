"""What ranks compare before they count."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lape_ds.distributed import ranks
from lape_ds.errors import UserError
from lape_ds.identification.job import _agree  # pyright: ignore[reportPrivateUsage]
from lape_ds.model.loading import fingerprint
from tests.identification.making import make_recipe


def test_each_host_may_hold_the_model_in_a_folder_of_its_own(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights may not differ; the refusal says where the first host's are."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(model_folder, copy)
    seen: list[Any] = []

    def meet(value: Any) -> list[Any]:
        if isinstance(value, str):
            return ["a", "b"]
        seen.append(value)
        return [seen[0], value]

    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "meet", meet)
    recipe = make_recipe(tmp_path, model_folder)
    assert _agree(recipe, model_folder, {}) == _agree(recipe, copy, {}) == fingerprint(model_folder)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        UserError, match=f"the model's weights: .* rank 1 on b.*; copy {model_folder} of a to all"
    ):
        _agree(recipe, copy, {})
