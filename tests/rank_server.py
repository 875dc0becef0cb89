"""Starts ranks fast: torch and DeepSpeed are imported once, and each rank is forked from here as a process of its own.

One JSON request a line on stdin, one JSON reply a line on stdout: `{"module": …, "arguments": …, "environment": …, "log": …}`
starts a rank as `python -m module arguments…` would and replies its process id; `{"poll": pid}` replies its exit code, null
while it runs.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import runpy
import signal
import sys
import traceback
from typing import Any

from lape_ds.noise import quiet_deepspeed


def start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _become(request)
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _become(request: dict[str, Any]) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, target in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(target, descriptor)
    os.environ.update(request["environment"])
    sys.argv = [request["module"], *request["arguments"]]
    if "largest_file" in request:
        limit = request["largest_file"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def main() -> None:
    quiet_deepspeed()
    import lape_ds.training.loop
    import lape_ds.training.setup  # noqa: F401

    gc.collect()
    gc.freeze()  # a rank's collections need not look at what is imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tests' to handle; a rank sets its own
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(poll(request["poll"]) if "poll" in request else start(request)), flush=True)


if __name__ == "__main__":
    main()
