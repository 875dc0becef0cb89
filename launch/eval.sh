#!/usr/bin/env bash
# Evaluates a recipe's models: one process, on this machine or on the first host of a hostfile (pdsh).
#
#     launch/eval.sh RECIPE.yaml [key=value ...]
#     launch/eval.sh --hostfile hosts RECIPE.yaml [key=value ...]
#
# In Slurm: sbatch launch/slurm.sbatch --stage eval RECIPE.yaml [key=value ...]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)"
exec "$python" -m lape_ds.training.launch eval "$@"
