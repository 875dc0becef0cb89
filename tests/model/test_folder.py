"""What a model's path names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lape_ds.model.folder import is_hub_id


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.1-8B", True),
        ("gpt2", True),
        ("runs/quickstart/base", False),  # of another machine, perhaps
        ("/data/base", False),
        ("./base", False),
        ("~/base", False),
        ("..", False),
        (str(Path(__file__).parent), False),
    ],
)
def test_names_of_the_hub(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected
