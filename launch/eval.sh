#!/usr/bin/env bash
# Evaluates: on all GPUs of this machine, on the hosts of a hostfile (pdsh), or as a rank where srun or torchrun starts it.
#
#     launch/eval.sh RECIPE.yaml [key=value ...] [options of lape-ds eval]
#     launch/eval.sh --hostfile hosts RECIPE.yaml [key=value ...] [--suite general]     (a line of hosts: `node1 slots=8`)
#     srun launch/eval.sh RECIPE.yaml [key=value ...]                                   (in a Slurm job)
#
# In Slurm: sbatch launch/slurm.sbatch --stage eval RECIPE.yaml [key=value ...]
# With eval.backend=vllm it is one process, on this machine or on the first host.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)"
exec "$python" -m lape_ds.training.launch eval "$@"
