#!/usr/bin/env bash
# Lint and test in the tested environment. `bash scripts/test.sh -m slow` runs the long tests instead.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev
ruff check .
ruff format --check .
unset PYTHONDONTWRITEBYTECODE  # each process would compile all tests, and rewrite their assertions, in every run: 6 s
# one thread each, since the models are tiny; a third process computes while others on two cores wait
OMP_NUM_THREADS=1 python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder "$@"
