#!/usr/bin/env bash
# Lint and test in the tested environment. `bash scripts/test.sh -m slow` runs the long tests instead.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev
ruff check .
ruff format --check .
python -m pytest "$@"
