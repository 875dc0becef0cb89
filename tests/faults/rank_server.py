"""Starts ranks fast: torch and DeepSpeed are imported once, and each rank is forked from here as a process of its own.

One JSON request a line on stdin, one JSON reply a line on stdout: `{"arguments": …, "environment": …, "log": …}` starts a rank
and replies its process id; `{"poll": pid}` replies its exit code, null while it runs.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from typing import Any

from lape_ds.noise import quiet_deepspeed


def start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.environ.update(request["environment"])
        if "largest_file" in request:
            limit = request["largest_file"]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        from lape_ds.training.main import run

        run(request["arguments"])
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def main() -> None:
    quiet_deepspeed()
    import lape_ds.training.loop
    import lape_ds.training.main
    import lape_ds.training.setup  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tests' to handle; a rank sets its own
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(poll(request["poll"]) if "poll" in request else start(request)), flush=True)


if __name__ == "__main__":
    main()
