# Sourced by quickstart.sh and test.sh: .venv with the tested set of packages, made once and then reused.
# Usage: source scripts/environment.sh EXTRAS

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "mypt needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
    exit 2
}
wanted="$1 $(cat setup.cfg scripts/constraints.txt | cksum)"
if grep --quiet --line-regexp --fixed-strings "$wanted" .venv/installed 2>/dev/null; then
    echo "reusing .venv"
else
    echo "installing into .venv (a few minutes the first time)"
    [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
    # torch first and alone: a build that is pinned here keeps every later range from fetching another one
    .venv/bin/python -m pip install --quiet --constraint scripts/constraints.txt torch==2.13.0
    .venv/bin/python -m pip install --quiet --constraint scripts/constraints.txt --editable ".[$1]"
    echo "$wanted" >> .venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"
