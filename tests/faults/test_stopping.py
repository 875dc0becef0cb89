"""A run that is asked to stop keeps a checkpoint behind the step at hand, on all ranks, and goes on as if never stopped."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from lape_ds.distributed.stopping import STOPPED, StopRequest
from lape_ds.training.export import export_model
from lape_ds.training.run_folder import checkpoints_in
from tests.faults.scheduler import Jobs, assert_same_run, last_step, losses_of, metrics_of

LONG = ["train.max_steps=100", "train.epochs=99", "train.checkpoint_every_steps=1000"]
LONG += ["train.heldout.every_steps=1000", "train.gradient_accumulation_steps=1"]


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_second_job_is_refused_and_one_signalled_rank_stops_all(jobs: Jobs) -> None:
    """Slurm's warning (SIGUSR1) may reach one rank alone."""
    arguments = ["train.run_name=held", *LONG, "train.max_steps=5000"]
    first = jobs.start(*arguments, world_size=2, environment={"SLURM_JOB_ID": "4711"})
    first.wait_for(lambda: last_step(first.run_dir) >= 2)
    second = jobs.start(*arguments, world_size=2)
    assert second.end() == [2, 2], second.output()
    line = second.lines("error:")[0]
    assert f"another process is at work in {first.run_dir} (process {first.ranks[0].pid} on " in line
    assert ", Slurm job 4711, since " in line
    first.ranks[1].send_signal(signal.SIGUSR1)
    assert first.end() == [STOPPED, STOPPED], first.output()
    (newest,) = checkpoints_in(first.run_dir / "checkpoints")
    steps = [line["step"] for line in metrics_of(first.run_dir) if "loss" in line]
    assert newest.name == f"step-{steps[-1]:08d}"
    assert steps == list(range(1, steps[-1] + 1))
    assert len(first.lines(f"stopped after step {steps[-1]:,} of 5,000 (as another rank was asked to)")) == 1


def test_a_requeued_job_that_began_anew_goes_on(jobs: Jobs) -> None:
    """Slurm starts it again with the same command, `train.resume=never` in it; that is about the run before the job."""
    arguments = ["train.run_name=anew", *LONG, "train.max_steps=5000"]
    jobs.stop_after(2, *arguments)
    anew = [*arguments, "train.resume=never"]
    job = {"SLURM_JOB_ID": "4712"}

    def stops_after_more_steps(environment: dict[str, str], says: str | None) -> list[int]:
        before = last_step(jobs.started[-1].run_dir)
        started = jobs.start(*anew, environment=environment)
        started.wait_for(lambda: last_step(started.run_dir) not in (0, before))
        started.ranks[0].send_signal(signal.SIGTERM)
        assert started.end() == [STOPPED], started.output()
        assert [line.split(" of ")[0] for line in started.lines("going on")] == ([says] if says else [])
        return [line["step"] for line in metrics_of(started.run_dir) if "loss" in line]

    # An earlier start that was stopped in set-up has not begun anew yet.
    stops_after_more_steps(job | {"SLURM_RESTART_COUNT": "1"}, None)
    kept = last_step(jobs.started[-1].run_dir)
    steps = stops_after_more_steps(job | {"SLURM_RESTART_COUNT": "2"}, f"going on from step {kept:,}")
    assert steps == list(range(1, steps[-1] + 1))
    stops_after_more_steps({"SLURM_JOB_ID": "4713"}, None)


def test_slurms_time_limit_stops_in_time(jobs: Jobs) -> None:
    arguments = ["train.run_name=limited-time", *LONG]
    end = {"SLURM_JOB_END_TIME": str(int(time.time()) + 60)}
    job = jobs.start(*arguments, world_size=2, environment=end)
    assert job.end() == [STOPPED, STOPPED], job.output()
    assert len(job.lines("stopped after step 1 of 100 (the job's time limit)")) == 1
    jobs.run(*arguments, world_size=2)
    assert [line["step"] for line in metrics_of(job.run_dir) if "loss" in line] == list(range(1, 101))


def test_margin_before_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """120 s, or three of the longest steps."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 150))
    stop = StopRequest()
    assert stop.reason is None
    stop.saw_step(39)
    assert stop.reason is None
    stop.saw_step(60)
    stop.saw_step(1)
    assert stop.margin_s == 180
    assert stop.reason == "the job's time limit"


def test_before_the_first_step_a_signal_ends_at_once(jobs: Jobs) -> None:
    job = jobs.start("train.run_name=early")
    rank = job.ranks[0]
    job.wait_for(lambda: catches(rank.pid, signal.SIGUSR1))
    rank.send_signal(signal.SIGUSR1)
    assert job.end() == [STOPPED]
    assert len(job.lines("SIGUSR1: stopped before the first step; the same command goes on")) == 1
    assert last_step(job.run_dir) == 0


@pytest.mark.long
def test_dropout_goes_on_as_if_never_stopped(jobs: Jobs) -> None:
    """Two ranks draw their own; every step's draws are a function of seed, step and rank."""
    lora = [*LONG, "train.method=lora", "train.lora.r=2", "train.lora.dropout=0.5"]
    undisturbed = jobs.run("train.run_name=dropout", *lora, world_size=2)
    arguments = ["train.run_name=dropout-stopped", *lora]
    run_dir = jobs.stop_after(30, *arguments, world_size=2)
    assert last_step(run_dir) < 100
    jobs.run(*arguments, world_size=2)
    assert_same_run(run_dir, undisturbed, steps=range(1, 101))
    without = jobs.run(
        "train.run_name=no-dropout", *lora, "train.lora.dropout=0", "train.max_steps=4", world_size=2
    )
    assert losses_of(without)[1:] != losses_of(undisturbed)[1:4], (
        "dropout does nothing, so this shows nothing"
    )


def test_other_ranks_stages_and_engine_on_the_way(jobs: Jobs) -> None:
    """2 → 1 → 2 ranks, ZeRO 1 → 3 → 2, masked → compact; export compares every bit outside the subnetwork with the base."""
    undisturbed = jobs.run("train.run_name=one-way", *LONG, world_size=2)
    arguments = ["train.run_name=many-ways", *LONG]
    jobs.stop_after(25, *arguments, "train.engine=masked", "deepspeed.zero_stage=1", world_size=2)
    middle = ["train.engine=masked", "deepspeed.zero_stage=3", "train.gradient_accumulation_steps=2"]
    run_dir = jobs.stop_after(50, *arguments, *middle)
    before = last_step(run_dir)
    assert 50 <= before < 100
    jobs.run(*arguments, "deepspeed.zero_stage=2", world_size=2)
    assert losses_of(run_dir) == pytest.approx(losses_of(undisturbed), rel=1e-3)
    assert len(losses_of(run_dir)) == 100
    done = export_model(run_dir, checkpoint="last")
    assert 0 < done.changed <= done.trained
