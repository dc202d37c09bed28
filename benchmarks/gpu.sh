#!/usr/bin/env bash
# What a machine with a GPU can tell, in about eight minutes: every training and evaluation beside the CPU's (tests marked
# cuda), and every bench at full size. Records, logs and a summary with device, date and versions go to one folder.
#
#   bash benchmarks/gpu.sh                            # after make setup; benchmarks/results/gpu-<date>
#   bash benchmarks/gpu.sh --device cpu --output dry  # the same steps at small sizes, where there is no GPU
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"
