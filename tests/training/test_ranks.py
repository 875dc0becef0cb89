from tests.processes import run_ranks


def test_what_one_rank_raises_all_raise() -> None:
    run_ranks("tests.training.ranks_worker", [], world_size=2)
