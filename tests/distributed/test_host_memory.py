"""What a control group leaves of a machine's memory, with its files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from lape_ds.distributed import host_memory
from lape_ds.distributed.host_memory import available_memory, left_in_groups

GB = 10**9
STAT = "anon 500\nfile 3000000000\nshmem 1000000000\ninactive_file 1500000000\nactive_file 500000000\n"
STAT_OF_V1 = "cache 3000\ninactive_file 7\nactive_file 7\ntotal_inactive_file 1500000000\ntotal_active_file 500000000\n"


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(content)


def left(tmp_path: Path, listed: str) -> list[int]:
    (tmp_path / "cgroup").write_text(listed)
    return list(left_in_groups(tmp_path / "cgroup", tmp_path / "root"))


def test_a_slurm_jobs_limit_holds_for_its_tasks(tmp_path: Path) -> None:
    """Version 2: the task's own group has none, the step's is the machine's, the job's is what counts."""
    job = tmp_path / "root" / "system.slice" / "job_7"
    group(tmp_path / "root", stat="inactive_file 99\n")  # the top has no limit
    group(job, max="64000000000\n", current="10000000000\n", stat=STAT)
    group(job / "step_0", max="256000000000\n", current="9000000000\n", stat=STAT)
    group(job / "step_0" / "task_0", max="max\n", current="8000000000\n", stat=STAT)
    found = left(tmp_path, "0::/system.slice/job_7/step_0/task_0\n")
    assert found == [(256 - 9 + 2) * GB, (64 - 10 + 2) * GB]


def test_a_container_sees_its_group_at_the_top(tmp_path: Path) -> None:
    """Version 1, with the path that the group has outside; version 2, which is mounted beside it, has no limits then."""
    group(
        tmp_path / "root" / "memory",
        limit_in_bytes="8000000000\n",
        usage_in_bytes="5000000000\n",
        stat=STAT_OF_V1,
    )
    listed = "12:cpu,cpuacct:/docker/4f\n9:memory:/docker/4f\n1:name=systemd:/docker/4f\n0::/docker/4f\n"
    assert left(tmp_path, listed) == [5 * GB]


def test_no_group_leaves_less_than_nothing(tmp_path: Path) -> None:
    group(tmp_path / "root" / "a", max="1000\n", current="4000\n", stat="inactive_file 10\n")
    assert left(tmp_path, "0::/a\n") == [0]


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert list(left_in_groups(tmp_path / "nowhere", tmp_path)) == []
    assert left(tmp_path, "0::/\n") == []


def test_the_least_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group(tmp_path / "root" / "a", max="7000000\n", current="3000000\n", stat="")
    (tmp_path / "cgroup").write_text("0::/a\n")
    monkeypatch.setattr(host_memory, "_PROC", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "_ROOT", tmp_path / "root")
    assert available_memory() == 4 * 10**6 < psutil.virtual_memory().available
