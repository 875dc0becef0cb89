#!/usr/bin/env bash
''':'
# Trains a recipe under DeepSpeed, on all GPUs of this machine or over a hostfile:
#
#     launch/train.sh RECIPE.yaml [key=value ...]
#     launch/train.sh --hostfile hosts RECIPE.yaml [key=value ...]     (launcher options come before the recipe)
#     deepspeed launch/train.sh RECIPE.yaml [key=value ...]
#
# One file in two languages: the shell reads this half and starts the DeepSpeed launcher, which runs the file again with
# Python, once per rank; to Python this half is a string.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)"
exec "$python" -m lape_ds.training.launch "$@"
'''

import sys

from lape_ds.training.main import run

if __name__ == "__main__":
    run(sys.argv[1:])
