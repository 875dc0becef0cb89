#!/usr/bin/env bash
''':'
# Finds the neurons of a recipe: on all GPUs of this machine, on the hosts of a hostfile (pdsh), or as a rank where srun or torchrun
# starts it.
#
#     launch/identify.sh RECIPE.yaml [key=value ...]
#     launch/identify.sh --hostfile hosts RECIPE.yaml [key=value ...]      (a line of hosts: `node1 slots=8`)
#     srun launch/identify.sh RECIPE.yaml [key=value ...]              (in a Slurm job; launch/slurm.sbatch --stage identify submits one)
#     torchrun --nnodes 2 ... launch/identify.sh RECIPE.yaml [key=value ...]
#
# Launcher options come before the recipe, as for train.sh. Stopped or killed, the same command goes on. identify.zero_stage=3 divides a
# model that does not fit one GPU over all ranks; identify.part=0/4 counts a quarter, e.g. on a cluster of its own.
#
# One file in two languages: the shell reads this half; torchrun starts the file with Python, once per rank, and to Python this
# half is a string.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)"
exec "$python" -m lape_ds.distributed.launch identify "$@"
'''

import sys

from lape_ds.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "identify")
    main()
