#!/bin/sh
# A rival's own virtual environment, with pinned versions:
#   benchmarks/rivals/setup.sh pytorch|fedjax|gossipy [FOLDER]
# makes FOLDER/NAME, by default benchmarks/rivals/.venvs/NAME. For another FOLDER set
# JAXFL_RIVALS=FOLDER when running benchmarks, and PYTHON=... here for another Python than `python`.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
name=${1:-}
if [ ! -f "$here/$name.txt" ]; then
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
fi
folder=${2:-$here/.venvs}
"${PYTHON:-python}" -m venv --clear "$folder/$name"
"$folder/$name/bin/python" -m pip install -q -r "$here/$name.txt"
echo "$folder/$name/bin/python"
