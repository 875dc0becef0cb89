"""Which rate of a method stands for it, and whose checkpoints stay; on runs written by hand."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from lape_ds.recipe import SweepRun
from lape_ds.training import sweep
from lape_ds.training.tuned import drop_untuned, tuned_rate
from tests.matrix.matrices import hand_matrix, write_diverged, write_run


def random_runs(folder: Path) -> dict[tuple[float, int], SweepRun]:
    runs = hand_matrix(folder).languages[0].runs_of("random")
    return {(run.learning_rate, run.seed): run for run in runs}


def kept(runs: dict[tuple[float, int], SweepRun]) -> set[tuple[float, int]]:
    return {key for key, run in runs.items() if (run.run_dir / "checkpoints").exists()}


def test_a_rate_wins_by_its_mean_over_seeds(tmp_path: Path) -> None:
    runs = random_runs(tmp_path)
    own = list(runs.values())
    assert tuned_rate(own) is None
    write_run(runs[1e-3, 0], gain=0.9, forgetting=0.1)
    write_run(runs[1e-4, 0], gain=0.5, forgetting=0.1)
    assert tuned_rate(own) is None  # the other seed may turn it round
    drop_untuned(own)
    assert kept(runs) == {(1e-3, 0), (1e-4, 0)}
    write_run(runs[1e-4, 1], gain=0.5, forgetting=0.1)
    assert tuned_rate(own) == 1e-4
    write_run(runs[1e-3, 1], gain=0.0, forgetting=0.1)  # mean 0.45
    assert tuned_rate(own) == 1e-4
    drop_untuned(own)
    assert kept(runs) == {(1e-4, 0), (1e-4, 1)}


def test_a_rate_with_a_diverged_seed_never_wins(tmp_path: Path) -> None:
    runs = random_runs(tmp_path)
    for key, run in runs.items():
        write_run(run, gain=key[0] * 100, forgetting=0.1)
    write_diverged(runs[1e-3, 1])
    assert tuned_rate(list(runs.values())) == 1e-4
    for run in runs.values():
        write_diverged(run)
    assert tuned_rate(list(runs.values())) is None
    drop_untuned(list(runs.values()))
    assert not kept(runs)


def test_what_another_worker_has_in_hand_keeps_its_checkpoints(tmp_path: Path) -> None:
    """It is finished by its metrics, and its worker has not let go of it yet."""
    runs = random_runs(tmp_path)
    for key, run in runs.items():
        write_run(run, gain=key[0] * 100, forgetting=0.1)
    in_hand, own = runs[1e-4, 0], runs[1e-3, 1]
    with ExitStack() as held:
        assert sweep._take(in_hand, held)
        sweep._drop_untuned(list(runs.values()), own)
        assert kept(runs) == {(1e-3, 0), (1e-3, 1), (1e-4, 0)}
    sweep._drop_untuned(list(runs.values()), own)
    assert kept(runs) == {(1e-3, 0), (1e-3, 1)}
