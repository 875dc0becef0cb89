#!/usr/bin/env bash
''':'
# Evaluates: on all GPUs of this machine, on the hosts of a hostfile (pdsh), or as a rank where srun or torchrun starts it.
#
#     launch/eval.sh RECIPE.yaml [key=value ...] [options of lape-ds eval]
#     launch/eval.sh --hostfile hosts RECIPE.yaml [key=value ...] [--suite general]     (a line of hosts: `node1 slots=8`)
#     srun launch/eval.sh RECIPE.yaml [key=value ...]                 (in a Slurm job; launch/slurm.sbatch --stage eval submits one)
#     torchrun --nnodes 2 ... launch/eval.sh RECIPE.yaml [key=value ...]
#
# Launcher options come before the recipe, as for train.sh. With eval.backend=vllm it is one process, on the first host.
#
# One file in two languages: the shell reads this half; torchrun starts the file with Python, once per rank, and to Python this
# half is a string.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)"
exec "$python" -m lape_ds.distributed.launch eval "$@"
'''

import sys

from lape_ds.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "eval")
    main()
