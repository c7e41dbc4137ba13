#!/usr/bin/env bash
# Checks of a machine with a GPU, under eight minutes, without a download (run `make fetch` before): the contract
# of editors on CUDA, one page at smoke size, and a hundred AlphaEdit edits at LLaMA-3-8B's shapes with random
# weights. Leaves results/gpu_check.json. Rehearsed on the CPU (--rehearse); never run on a GPU so far.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec timeout --kill-after=5 475 "${PYTHON:-.venv/bin/python}" -m benchmarks.gpu_check "$@"
