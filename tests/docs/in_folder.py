"""A module of the package in another working folder: `python -m tests.docs.in_folder FOLDER MODULE [argument …]`.

Ranks are forked from a process that stands in the repository (tests/rank_server.py), and the docs' paths are relative.
"""

from __future__ import annotations

import os
import runpy
import sys

if __name__ == "__main__":
    _, folder, module, *arguments = sys.argv
    os.chdir(folder)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
