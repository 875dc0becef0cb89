#!/usr/bin/env bash
# Finds the neurons of a recipe: one process, on this machine or on the first host of a hostfile (pdsh).
#
#     launch/identify.sh RECIPE.yaml [key=value ...]
#     launch/identify.sh --hostfile hosts RECIPE.yaml [key=value ...]
#
# In Slurm: sbatch launch/slurm.sbatch --stage identify RECIPE.yaml [key=value ...]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)"
exec "$python" -m lape_ds.distributed.launch identify "$@"
