#!/usr/bin/env bash
# The whole way, stage by stage: text → tiny model → neurons → subnetwork training → Hugging Face model → lm-eval → table.
# What is there already is kept: run it again after an interruption, or after changing the recipe's later sections.
#
#     launch/quickstart.sh [RECIPE.yaml]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
recipe="${1:-$here/../recipes/quickstart.yaml}"
[ ! -x "$here/../.venv/bin/lape-ds" ] || PATH="$here/../.venv/bin:$PATH"

if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; else bold='' plain=''; fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

step "1/6  A model: made here if the recipe says how"
lape-ds pretrain "$recipe"
step "2/6  Neurons: p(gate > 0) of every language, LAPE selection"
lape-ds identify "$recipe"
step "3/6  Train the target's subnetwork (launch/train.sh, DeepSpeed)"
"$here/train.sh" "$recipe" train.method=subnetwork
step "4/6  Train a random subnetwork of the same size, for comparison"
"$here/train.sh" "$recipe" train.method=random
step "5/6  Export to plain Hugging Face folders; every bit outside the subnetwork is compared with the base"
lape-ds export "$recipe" train.method=subnetwork --checkpoint last
lape-ds export "$recipe" train.method=random --checkpoint last
step "6/6  lm-eval over the base and both models; what differs by more than chance"
lape-ds eval "$recipe"
lape-ds compare "$recipe"
step "Held-out text, before and after"
lape-ds summary "$recipe"
