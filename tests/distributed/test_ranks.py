import pytest

from lape_ds.distributed.ranks import ranks_here
from tests.processes import run_ranks


def test_what_one_rank_raises_all_raise() -> None:
    run_ranks("tests.distributed.ranks_worker", [], world_size=2)


def test_ranks_of_a_node_as_launchers_say_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's own launcher says LOCAL_SIZE alone."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    assert ranks_here() == 1
    monkeypatch.setenv("LOCAL_SIZE", "8")
    assert ranks_here() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert ranks_here() == 4
