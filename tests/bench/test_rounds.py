import pytest
import torch

from lape_ds.bench import rounds
from lape_ds.bench.rounds import Spread, interleave, speed_ratios

CPU = torch.device("cpu")


def run(num_rounds: int, warmup: int, seed: int = 0) -> tuple[list[str], dict[str, list[float]]]:
    taken: list[str] = []
    turns = {name: (lambda name=name: taken.append(name)) for name in "abcd"}
    seconds = interleave(turns, rounds=num_rounds, warmup=warmup, seed=seed, device=CPU, description="Test")
    return taken, seconds


def test_every_contender_once_a_round_in_changing_order() -> None:
    taken, seconds = run(6, 2)
    by_round = [taken[start : start + 4] for start in range(0, len(taken), 4)]
    assert len(by_round) == 8
    assert all(sorted(order) == list("abcd") for order in by_round)
    assert len({tuple(order) for order in by_round}) > 3
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abcd", 6)
    assert run(6, 2)[0] == taken
    assert run(6, 2, seed=1)[0] != taken


def test_warmup_is_thrown_away_and_between_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])

    def work(seconds: float) -> None:
        now[0] += seconds

    lasting = iter([100.0, 1.0, 2.0])  # the first one warms up
    seconds = interleave(
        {"a": lambda: work(next(lasting))},
        rounds=2,
        warmup=1,
        seed=0,
        device=CPU,
        description="Test",
        between=lambda name: work(1000.0),
    )
    assert seconds == {"a": [1.0, 2.0]}


def test_ratios_are_taken_within_a_round() -> None:
    """`b` takes 2, 3 and 1 times as long in rounds that are slow, quick and slow: 2 in the middle; of medians it is 3."""
    seconds = {"a": [10.0, 1.0, 11.0], "b": [20.0, 3.0, 11.0]}
    ratios = speed_ratios(seconds)
    assert ratios["a"]["b"] == Spread(1.5, 2.0, 2.5)
    assert ratios["b"]["a"].median == 0.5
    assert "a" not in ratios["a"]
