#!/usr/bin/env bash
# Submits a sweep to SLURM as a job array, a task for each point that `velm train -m` would run:
#
#   scripts/sweep.sh train dataset=shapes seed=0,1 fusion=concat,add,gated
#   scripts/sweep.sh --throttle=8 --gpus=1 --cpus-per-task=8 --time=4:00:00 train dataset=coco optim.lr=1e-3,1e-4
#
# Options before the stage are sbatch's (as --option=value), but for --throttle: how many tasks run at a time.
set -euo pipefail

throttle=
options=()
while [[ ${1:-} == -* ]]; do
  case $1 in
    --throttle=*) throttle=%${1#*=} ;;
    *) options+=("$1") ;;
  esac
  shift
done
if [ $# = 0 ]; then
  echo "usage: scripts/sweep.sh [--throttle=N] [--sbatch-option=value ...] train key=value,value ..." >&2
  exit 2
fi

folders=$(velm "$@" -m --where)  # the grammar is Hydra's; a mistake ends here
points=$(wc -l <<<"$folders")
VELM_SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export VELM_SCRIPTS
sbatch --array="0-$((points - 1))$throttle" "${options[@]}" "$VELM_SCRIPTS/slurm_array.sbatch" "$@"
printf '%s points; when they are done:\n  velm report $(velm' "$points"
printf ' %q' "$@" -m --where
printf ')\n'
