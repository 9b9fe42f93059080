#!/usr/bin/env bash
# The classic recipe: train vision alone, language alone (on text only), join the two, evaluate.
#
#   scripts/classic_recipe.sh                                    on the embedded data set
#   DATA="dataset=coco dataset.root=/data/coco" VISION="vision=resnet18 vision.weights=none" \
#   TEXT="text=lstm text.width=512" FUSION="fusion=attention" NAME=coco scripts/classic_recipe.sh
#   STEPS=2000 METRICS="metrics.names=[bleu,cider]" ...          other lengths, other scores
#
# The same command again goes on where it was stopped.
set -euo pipefail

read -ra data <<<"${DATA:-dataset=shapes}"
read -ra vision <<<"${VISION:-vision=convnet}"
read -ra text <<<"${TEXT:-text=transformer}"
read -ra fusion <<<"${FUSION:-fusion=cross_modal}"
read -ra run <<<"run.max_steps=${STEPS:-600} ${RUN:-}"
read -ra metrics <<<"${METRICS:-}"
name=${NAME:-classic}
step() { printf '\n== velm %s\n' "$*"; velm "$@"; }

step preprocess "${data[@]}"
step preprocess "${data[@]}" dataset.images=false
# Vision: which of the words that captions use does the image show?
step train "${data[@]}" "${vision[@]}" "${text[@]}" "${fusion[@]}" "${run[@]}" loss.alpha=0 loss.beta=1 name="$name-vision"
# Language: the next word, without any image.
step train "${data[@]}" "${text[@]}" "${run[@]}" dataset.images=false vision=none fusion=none name="$name-language"
# Together: both parts go on from where they are, and the fusion learns to connect them.
step train "${data[@]}" "${vision[@]}" "${text[@]}" "${fusion[@]}" "${run[@]}" loss.beta=0.1 \
  init.vision="runs/train/$name-vision" init.text="runs/train/$name-language" name="$name"
step evaluate checkpoint="runs/train/$name" split=test "${metrics[@]}"
