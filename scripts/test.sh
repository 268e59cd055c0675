#!/usr/bin/env bash
# Lint and test in the tested environment. `bash scripts/test.sh -m slow` runs the long tests instead.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev
ruff check .
ruff format --check .
# one process per core, one thread each: the models are tiny
OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
