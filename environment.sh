# shellcheck shell=bash
# Sourced by run_all.sh and tests/run.sh.
#
# prepare_environment ROOT [EXTRA] makes ROOT/.venv with the package and the
# requirements that setup.py lists under EXTRA, unless that was done before and
# neither setup.py nor ROOT changed. It leaves the interpreter in $venv_python.
# PYTHON chooses the Python to begin with; it defaults to python3.

prepare_environment() {
  local root=$1 extra=${2:-} python=${PYTHON:-python3} stamp wanted
  venv_python=$root/.venv/bin/python
  stamp=$root/.venv/installed-$extra
  wanted="$(cksum <"$root/setup.py") $root"
  if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    return
  fi
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Python 3.11 or newer is needed: PYTHON=/path/to/python3.11 bash $0" >&2
    return 1
  fi
  echo "Installing into $root/.venv (minutes the first time) ..." >&2
  # An interrupted installation leaves an environment that may lack pip.
  if ! "$venv_python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --clear "$root/.venv"
  fi
  "$venv_python" -m pip install --quiet --disable-pip-version-check \
    --editable "$root${extra:+[$extra]}"
  echo "$wanted" >"$stamp"
}
