"""One tiny model for all tests of identification."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.identification.making import make_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers of 40 neurons, a context of 64 tokens."""
    return make_model(tmp_path_factory.mktemp("identify"))
