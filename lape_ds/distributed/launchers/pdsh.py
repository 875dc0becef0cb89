"""A job on many hosts through pdsh, and its end on all of them.

Beside running.py. DeepSpeed's own pdsh launcher cleans up with `pkill -f` on its command line, which ends a user's other jobs on
those hosts; here a second pdsh tells exactly the nodes of this job, by its token.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from lape_ds.distributed.launchers.job import NODE, Job, node_command, python_path
from lape_ds.distributed.launchers.node import SECONDS_BETWEEN_LOOKS, SECONDS_FOR_REASON
from lape_ds.distributed.launchers.running import stopping_on_signals
from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError

# A node that was still being started when it was told to stop has not heard of it.
_SECONDS_BETWEEN_STOPS = 5.0
# A host that has lost its power or network says nothing: after three of these ssh takes it for gone.
_SSH_OPTIONS = "-oBatchMode=yes -oServerAliveInterval=10 -oServerAliveCountMax=3"
_ENDED = re.compile(r"pdsh@[^:]*: (\S+): ssh exited with exit code (\d+)\s*")
_NO_CONNECTION = 255  # ssh's own
_LIBC = ctypes.CDLL(None)  # not in the child, between fork and exec
_PR_SET_PDEATHSIG = 1


def run_on_hosts(job: Job) -> int:
    """Runs a job's nodes to their end; if one host fails, all are stopped.

    Returns:
        The code of the host that failed first, else 0; `STOPPED` if the ranks were told to stop.

    Raises:
        UserError: No pdsh here, or a host that cannot be reached by ssh.
    """
    if shutil.which("pdsh") is None:
        raise UserError("--hostfile needs pdsh on this machine (Debian, Ubuntu: apt-get install pdsh)")
    return _Hosts(job).run()


class _Hosts:
    """The hosts of one job while they run."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._codes: dict[str, int] = {}  # of hosts that ended with another code than 0, in that order
        self._stop_at: float | None = None  # when the nodes are to be told (again)
        self._telling: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """To the end of all."""
        pdsh = subprocess.Popen(
            _pdsh(self._job, _remote(node_command(self._job, "%h"))),
            env=_ssh_environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=end_with_parent,
            text=True,
            errors="replace",
        )
        assert pdsh.stderr is not None
        reader = threading.Thread(target=self._read, args=(pdsh.stderr,), daemon=True)
        reader.start()
        with stopping_on_signals(self._stop) as came:
            while pdsh.poll() is None:
                if self._failed() and self._stop_at is None:
                    self._stop_at = time.monotonic() + SECONDS_FOR_REASON
                if self._stop_at is not None and time.monotonic() >= self._stop_at:
                    self._stop_at = time.monotonic() + _SECONDS_BETWEEN_STOPS
                    self._tell_nodes()
                time.sleep(SECONDS_BETWEEN_LOOKS)
        reader.join()
        pdsh.stderr.close()
        return self._outcome(pdsh.returncode, told=bool(came))

    def _outcome(self, code: int, *, told: bool) -> int:
        failed = self._failed()
        if failed is None:
            return STOPPED if told or self._codes else code
        host, code = failed
        if code == _NO_CONNECTION:
            raise UserError(
                f"the connection to {host} failed or was lost: `ssh {host}` must work without a password from here, "
                "and every host of the hostfile be up"
            )
        return code

    def _failed(self) -> tuple[str, int] | None:
        return next((ended for ended in list(self._codes.items()) if ended[1] != STOPPED), None)

    def _stop(self) -> None:
        self._stop_at = time.monotonic()

    def _tell_nodes(self) -> None:
        """Beside the first pdsh and not waited for; a host that is gone holds up the others only where they are told again."""
        if self._telling is not None and self._telling.poll() is None:
            return
        command = [sys.executable, "-m", NODE, "--stop", self._job.token]
        quiet = subprocess.DEVNULL
        self._telling = subprocess.Popen(
            _pdsh(self._job, _remote(command)),
            env=_ssh_environment(),
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
        )

    def _read(self, lines: IO[str]) -> None:
        """Passes on what the ranks say, and notes which hosts have ended."""
        for line in lines:
            match = _ENDED.fullmatch(line)
            if match is None:
                sys.stderr.write(line)
                sys.stderr.flush()
            else:
                self._codes.setdefault(match[1], int(match[2]))
                if int(match[2]) != STOPPED:
                    print(f"{match[1]}: ended with exit code {match[2]}", file=sys.stderr, flush=True)


def end_with_parent() -> None:
    """In a child, before its program: the kernel kills it as we die, however. The nodes then see that nobody holds their handle.

    In a session of its own Ctrl-C does not reach it, and without this it would run on until it has something to write to us.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _pdsh(job: Job, remote: str) -> list[str]:
    return ["pdsh", "-S", "-f", str(len(job.hosts)), "-w", ",".join(job.hosts), remote]


def _remote(command: list[str]) -> str:
    """For a login shell of any kind on the other side, in the same folder as here; pdsh puts the host's name for %h."""
    words = ["env", f"PYTHONPATH={python_path()}", *command]
    line = " ".join("%h" if word == "%h" else _quoted(word) for word in words)
    return f"cd {_quoted(str(Path.cwd()))} && exec {line}"


def _quoted(word: str) -> str:
    return shlex.quote(word.replace("%", "%%"))


def _ssh_environment() -> dict[str, str]:
    """Ours, for pdsh: by ssh, never asking for a password; the user's own PDSH_SSH_ARGS stay."""
    more = " ".join(filter(None, [os.environ.get("PDSH_SSH_ARGS_APPEND"), _SSH_OPTIONS]))
    return {"PDSH_RCMD_TYPE": "ssh"} | dict(os.environ) | {"PDSH_SSH_ARGS_APPEND": more}
