#!/usr/bin/env bash
# One prepared run on a machine with a GPU: is velm right there, and how fast? At most 8 minutes, without a network.
#
#   scripts/gpu_session.sh OUT [WHEELS]      # OUT gets gpu.json and gpu.log, and a table is printed last
#   scripts/gpu_session.sh OUT WHEELS --device cpu --small     # the same code on a CPU, in a minute: it tests the script
#
# The machine's Python ($PYTHON, else python3) has torch, torchvision, transformers, tokenizers, safetensors, numpy,
# Pillow and tqdm. What else velm needs comes as wheels from the folder WHEELS, made elsewhere by
#
#   pip wheel --no-deps --wheel-dir WHEELS hydra-core==1.3.8 omegaconf==2.3.1 antlr4-python3-runtime==4.9.3
#
# and is unpacked into a temporary folder, so nothing is installed. No Java and no pycocoevalcap. Other arguments go to
# scripts/gpu_check.py (--only, --minutes).
set -euo pipefail

if [ $# -lt 1 ] || [[ $1 == -* ]]; then
  sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
wheels=
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  wheels=$(cd "$1" && pwd)
  shift
fi

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "$wheels" ]; then
  for wheel in "$wheels"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$site"
  done
fi
export PYTHONPATH="$here:$site${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONUNBUFFERED=1
missing=$("$python" - <<'PYTHON'
import importlib.util
needed = ("torch", "torchvision", "transformers", "tokenizers", "safetensors", "numpy", "PIL", "tqdm", "yaml", "hydra",
          "omegaconf", "antlr4")
print(*(name for name in needed if importlib.util.find_spec(name) is None))
PYTHON
)
if [ -n "$missing" ]; then
  echo "gpu_session.sh: $python lacks: $missing (hydra, omegaconf and antlr4 come as wheels: see the head of this file)" >&2
  exit 2
fi
"$python" "$here/scripts/gpu_check.py" --out "$out" "$@"
