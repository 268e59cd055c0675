#!/usr/bin/env bash
# From nothing to the point of MyPT in a few minutes on two CPU cores: a model learns documentation prose, is adapted to
# source code twice, without and with replay, and a table shows what each adaptation cost, and what interpolation gives
# back. Safe to run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" plots

step() { printf '\n=== %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
data=data/quickstart runs=runs/quickstart

step "1. Text: this Python's documentation prose (general) and its source code (domain)"
[ -f $data/text/domain.jsonl ] || run python -m mypt.text.embedded $data/text

step "2. Prepare: text -> tokens, once"
run mypt prepare --source $data/text/general.jsonl --out $data/general --tokenizer bpe --vocab-size 4096
run mypt prepare --source $data/text/domain.jsonl --out $data/domain --tokenizer $data/general --val-fraction 0.015

step "3. Plan, before paying"
run mypt plan recipes/quickstart_general.yaml

step "4. Train on general"
run mypt train recipes/quickstart_general.yaml --resume

step "5. Adapt to domain, without replay"
# No step keeps general within its tolerance, so the best one is interpolated towards the start: $runs/domain/best.
run mypt train recipes/quickstart_domain.yaml --resume

step "6. Adapt to domain, one sample in ten replayed from general"
run mypt train recipes/quickstart_domain.yaml --resume --training.output_dir=$runs/replay \
    "--data.train={$data/domain: 0.9, $data/general: 0.1}"

step "7. What was learned, and what it cost"
run mypt evaluate $runs/general $runs/domain $runs/replay $runs/domain/best --data general=$data/general domain=$data/domain \
    --block-size 128 --batch-size 32 --guard general

step "8. A sample of each"
for model in general domain domain/best; do
    run mypt generate $runs/$model --prompt "The function returns" --max-new-tokens 60 --temperature 0.8 --seed 1
done
printf '\nThe curves: %s/domain/forgetting.png, %s/domain/loss.png, %s/domain/best/interpolation.png\n' $runs $runs $runs
printf 'All on one page: %s/domain/report.html\n' $runs
