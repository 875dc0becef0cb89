#!/usr/bin/env bash
''':'
# Trains a recipe: on all GPUs of this machine, on the hosts of a hostfile (pdsh), or as a rank where srun or torchrun starts it.
#
#     launch/train.sh RECIPE.yaml [key=value ...]
#     launch/train.sh --hostfile hosts RECIPE.yaml [key=value ...]     (a line of hosts: `node1 slots=8`)
#     srun launch/train.sh RECIPE.yaml [key=value ...]                 (in a Slurm job; launch/slurm.sbatch submits one)
#     torchrun --nnodes 2 ... launch/train.sh RECIPE.yaml [key=value ...]
#     deepspeed launch/train.sh RECIPE.yaml [key=value ...]
#
# Launcher options come before the recipe: --hostfile FILE, --include or --exclude HOST:SLOT,SLOT@HOST, --num_nodes N, --num_gpus N
# (ranks, where there is no GPU), --master_addr HOST, --master_port N.
#
# One file in two languages: the shell reads this half; torchrun and deepspeed start the file with Python, once per rank, and to
# Python this half is a string.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)"
exec "$python" -m lape_ds.distributed.launch train "$@"
'''

import sys

from lape_ds.training.main import run

if __name__ == "__main__":
    run(sys.argv[1:])
