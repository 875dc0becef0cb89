"""Two hosts through pdsh: from the recipe to the table, stopped, and failing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from lape_ds.distributed.launchers.job import Job, node_command
from lape_ds.distributed.stopping import STOPPED
from tests.cluster.conftest import ENVIRONMENT, STEPS
from tests.cluster.hosts import run_on_hosts, start_on_hosts
from tests.cluster.machines import HOSTS, free_ports
from tests.cluster.watching import ranks_of, same_weights, steps_logged, steps_taken, wait_until

pytestmark = pytest.mark.cluster


def test_from_recipe_to_table(recipe: Path, pdsh: Mapping[str, str], undisturbed: Path) -> None:
    assert steps_logged(undisturbed) == list(range(1, STEPS + 1))
    assert same_weights(undisturbed, undisturbed)  # exports
    printed = run_on_hosts("eval", recipe, env=pdsh)
    assert "base" in printed
    assert "subnetwork" in printed
    assert not any(
        line.startswith(f"{HOSTS[1]}:") for line in printed.splitlines()
    )  # one process, on the first


@pytest.fixture
def bystander() -> Iterator[psutil.Process]:
    """Another job of the same user on the same host, started as ours are."""
    server = ["--bind", HOSTS[0], str(*free_ports(1))]
    job = Job({HOSTS[0]: ["0"]}, "http.server", server, master_addr=HOSTS[0], master_port=1, one_process=True)
    command = node_command(job, HOSTS[0])
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as node:
        wait_until(lambda: bool(psutil.Process(node.pid).children()), "child of the bystander")
        yield psutil.Process(node.pid).children()[0]
        node.terminate()


def test_ctrl_c_stops_both_hosts_and_nobody_else(
    recipe: Path, pdsh: Mapping[str, str], undisturbed: Path, bystander: psutil.Process
) -> None:
    """Then a killed rank ends the training on both; and what is left goes on to the weights of an undisturbed run."""
    run_dir = undisturbed.with_name("stopped")
    settings = ["train.run_name=stopped"]
    hostfile = recipe.parent / "hosts"

    launcher = start_on_hosts("train", hostfile, recipe, *settings, env=pdsh)
    wait_until(lambda: steps_taken(run_dir) > 2, "third step")
    ranks = ranks_of("stopped")
    assert sorted(rank["SSH_CONNECTION"].split()[2] for rank in ranks.values()) == list(HOSTS)
    for rank in ranks.values():
        assert {name: rank[name] for name in ENVIRONMENT} == {
            name: str(value) for name, value in ENVIRONMENT.items()
        }
    os.killpg(launcher.pid, signal.SIGINT)
    printed, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == STOPPED, printed
    assert "the same command goes on" in printed
    assert not ranks_of("stopped")
    stopped_at = steps_taken(run_dir)
    assert 2 < stopped_at < STEPS

    launcher = start_on_hosts("train", hostfile, recipe, *settings, env=pdsh)
    wait_until(lambda: steps_taken(run_dir) > stopped_at + 2, "further step")
    victim = next(number for number, rank in ranks_of("stopped").items() if rank["RANK"] == "1")
    started = time.monotonic()
    psutil.Process(victim).kill()
    printed, _ = launcher.communicate(timeout=60)
    assert time.monotonic() - started < 60
    assert launcher.returncode not in (0, STOPPED), printed
    assert f"{HOSTS[1]}: ended with exit code 137" in printed
    assert not ranks_of("stopped")
    assert bystander.is_running()

    run_on_hosts("train", recipe, *settings, env=pdsh)
    assert steps_logged(run_dir) == list(range(1, STEPS + 1))
    assert same_weights(run_dir, undisturbed)


def test_launcher_killed_ends_the_ranks(recipe: Path, pdsh: Mapping[str, str], undisturbed: Path) -> None:
    """Nothing can be told to anybody then: the ranks' hosts see that nobody holds the other end."""
    launcher = start_on_hosts("train", recipe.parent / "hosts", recipe, "train.run_name=orphan", env=pdsh)
    wait_until(lambda: steps_taken(undisturbed.with_name("orphan")) > 2, "third step")
    launcher.kill()
    wait_until(lambda: not ranks_of("orphan"), "end of the ranks", seconds=30)
    launcher.communicate(timeout=20)
    assert steps_taken(undisturbed.with_name("orphan")) < STEPS
    assert (undisturbed.with_name("orphan") / "checkpoints").is_dir()


def test_a_host_that_does_not_answer(recipe: Path, pdsh: Mapping[str, str], undisturbed: Path) -> None:
    hostfile = recipe.parent / "hosts-one-dead"
    hostfile.write_text(f"{HOSTS[0]} slots=1\n127.0.0.3 slots=1\n", encoding="utf-8")
    launcher = start_on_hosts("train", hostfile, recipe, "train.run_name=dead", env=pdsh)
    printed, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 2, printed
    assert "error: the connection to 127.0.0.3 failed or was lost" in printed
    assert "Traceback" not in printed
    assert not ranks_of("dead")
