"""Two hosts on the loopback: an sshd of our own for pdsh, and a Slurm of our own with two nodes.

Everything lives in one temporary folder and ends with it. Needs root (sshd, slurmd) and Debian's packages.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

HOSTS = ("127.0.0.1", "127.0.0.2")
_PROGRAMS = {
    "pdsh": "pdsh",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "munged": "munge",
}
_POLICY = Path("/usr/sbin/policy-rc.d")
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # sshd insists on it


def install_programs() -> None:
    """Installs what is missing, without starting any service.

    Raises:
        RuntimeError: Not root, or no apt: the cluster cannot run here.
    """
    if os.getuid() != 0:
        raise RuntimeError("the cluster tests need root: sshd and slurmd start other people's processes")
    missing = {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise RuntimeError(
            f"the cluster tests need {', '.join(sorted(missing))}, and there is no apt-get to install them"
        )
    with _no_services():
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["update", "-qq"],
            ["install", "-y", "-qq", "--no-install-recommends", *sorted(missing)],
        ):
            done = subprocess.run(
                ["apt-get", *command], env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"apt-get {command[0]} failed: {done.stderr.strip()}")


@contextmanager
def _no_services() -> Iterator[None]:
    """Debian starts what it installs unless this file says no."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def free_ports(number: int) -> list[int]:
    """Ports that are free on all of the loopback."""
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def ssh_hosts(folder: Path) -> Iterator[dict[str, str]]:
    """Two hosts that answer to ssh; gives the environment in which pdsh reaches them."""
    (port,) = free_ports(1)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\n"
        + "".join(f"ListenAddress {host}\n" for host in HOSTS)
        + f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile {folder}/sshd.pid\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 50\n"
    )
    made = not _PRIVILEGE_SEPARATION.exists()
    _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    sshd = shutil.which("sshd")
    assert sshd is not None
    with (folder / "sshd.log").open("wb") as log:
        daemon = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stderr=log)
    try:
        _wait_for_port(HOSTS[1], port, daemon, folder / "sshd.log")
        unknown_hosts = "-oUserKnownHostsFile=/dev/null -oStrictHostKeyChecking=no -oLogLevel=ERROR"
        arguments = f"-2 -a -x -i {folder}/user -p {port} {unknown_hosts} -l%u %h"
        yield {"PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS": arguments}
    finally:
        _end([daemon])
        if made:
            _PRIVILEGE_SEPARATION.rmdir()


@contextmanager
def slurm_nodes(folder: Path) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes, n1 and n2; gives the environment in which its commands find it."""
    folder.chmod(0o755)  # munge wants its socket to be reachable
    controller, first, second = free_ports(3)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    config = folder / "slurm.conf"
    config.write_text(_slurm_config(folder, controller, (first, second)))
    (folder / "state").mkdir()
    # Counted, not there: so that jobs may ask for GPUs as users' do.
    (folder / "gres.conf").write_text("AutoDetect=off\nNodeName=n[1-2] Name=gpu File=/dev/null\n")
    environment = {"SLURM_CONF": str(config)}
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        program = shutil.which(command[0])
        assert program is not None
        with (folder / f"{Path(program).name}-{len(daemons)}.out").open("wb") as log:
            daemons.append(
                subprocess.Popen(
                    [program, *command[1:]],
                    env=os.environ | environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    try:
        names = {
            "socket": "socket",
            "key-file": "key",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        start(
            "munged", "--foreground", *(f"--{option}={folder}/munge.{name}" for option, name in names.items())
        )
        _wait_for(lambda: (folder / "munge.socket").exists(), daemons, folder)
        start("slurmctld", "-D", "-f", str(config))
        start("slurmd", "-D", "-N", "n1", "-f", str(config))
        start("slurmd", "-D", "-N", "n2", "-f", str(config))
        _wait_for(lambda: _idle_nodes(environment) == 2, daemons, folder)
        yield environment
    finally:
        told = os.environ | environment
        for _ in range(50):  # until no job is left: steps are no children of the daemons
            subprocess.run(
                ["scancel", "--signal=KILL", "--full", "--user=root"], env=told, check=False, timeout=20
            )
            jobs = subprocess.run(
                ["squeue", "--noheader"], env=told, capture_output=True, text=True, check=False
            )
            if not jobs.stdout.strip():
                break
            subprocess.run(["scancel", "--user=root"], env=told, check=False, timeout=20)
            time.sleep(0.2)
        _end(daemons)


def _slurm_config(folder: Path, controller: int, nodes: tuple[int, int]) -> str:
    cpus = os.cpu_count() or 1
    here = socket.gethostname()
    lines = [
        "ClusterName=loopback",
        f"SlurmctldHost={here}(127.0.0.1)",
        f"SlurmctldPort={controller}",
        "SlurmUser=root\nSlurmdUser=root",
        # A requeued job waits until credentials of its first start have expired: 2 minutes by default.
        f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge.socket,cred_expire=5",
        f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool.%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd.%n.pid",
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\nSwitchType=switch/none",
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nSchedulerParameters=batch_sched_delay=0,sched_interval=2",
        "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE",
        "GresTypes=gpu\nReturnToService=2\nKillWait=10\nJobRequeue=1",
        *(
            f"NodeName=n{number} NodeHostname={here} NodeAddr={host} Port={port} CPUs={cpus} Gres=gpu:1 State=UNKNOWN"
            for number, (host, port) in enumerate(zip(HOSTS, nodes, strict=True), start=1)
        ),
        "PartitionName=normal Nodes=n1,n2 Default=YES State=UP MaxTime=INFINITE PriorityTier=1 GraceTime=30",
        "PartitionName=urgent Nodes=n1,n2 State=UP MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF",
    ]
    return "\n".join(lines) + "\n"


def _idle_nodes(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--partition=normal", "--format=%T"]
    told = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return told.stdout.split().count("idle")


def _wait_for_port(host: str, port: int, daemon: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        assert daemon.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"nobody listens on {host}:{port}: {log.read_text()}")


def _wait_for(there: Callable[[], bool], daemons: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    for _ in range(300):
        if there():
            return
        if any(daemon.poll() is not None for daemon in daemons):
            break
        time.sleep(0.1)
    logs = [f"{path.name}:\n{path.read_text(errors='replace')[-3000:]}" for path in folder.glob("*.out")]
    raise AssertionError("the cluster does not come up\n" + "\n".join(logs))


def _end(daemons: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends daemons, last first, with all that they have started."""
    for daemon in reversed(daemons):
        with suppress(psutil.NoSuchProcess):
            family = [*psutil.Process(daemon.pid).children(recursive=True), psutil.Process(daemon.pid)]
            daemon.send_signal(signal.SIGTERM)
            _, alive = psutil.wait_procs(family, timeout=5)
            for process in alive:
                process.kill()
        daemon.wait()
