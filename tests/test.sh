#!/usr/bin/env bash
# Runs the integration matrix: bash tests/test.sh MODEL_DIR GPU_COUNT [flags]; --help tells more.
# PYTHON names the interpreter; else it is the first one here that has torch.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
for python in ${PYTHON:+"$PYTHON"} ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} "$root/.venv/bin/python" python python3; do
  if "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))' 2>/dev/null; then
    exec "$python" "$root/tests/matrix.py" "$@"
  fi
done
echo "tests/test.sh: error: no Python with torch is found; run make test once, or name one: PYTHON=/path/to/python" >&2
exit 2
