#!/usr/bin/env bash
# The whole job on the embedded data set: preprocess, train, finetune, evaluate. `make demo` runs it.
set -euo pipefail

java -version >/dev/null 2>&1 || echo "note: no Java here, so METEOR and SPICE will be left out"
step() { printf '\n== velm %s\n' "$*"; velm "$@"; }

step doctor fix=spice
began=$SECONDS
step preprocess dataset=shapes
step train experiment=shapes_demo name=demo
step finetune checkpoint=runs/train/demo experiment=shapes_demo_finetune name=demo
step evaluate checkpoint=runs/finetune/demo split=test
printf '\nThe demo took %d s. Images with their captions: runs/finetune/demo/samples/\n' $((SECONDS - began))
