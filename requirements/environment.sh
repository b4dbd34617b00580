#!/bin/sh
# Makes the environment that the Makefile installs into: requirements/environment.sh FOLDER [INTERPRETER]
# Without INTERPRETER it takes the first on the PATH that is whole. What is missing is said here, in one line, and not
# after minutes of downloads.
set -eu
folder=$1
shift
chosen=${1:-}
[ "$chosen" ] || set -- python3.11 python3.12 python3.13 python3.10 python3

# Run by the interpreter in question; prints what is wrong with it, or nothing.
check='
import ctypes, importlib.util, platform, sys

version = "%d.%d" % sys.version_info[:2]
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    print("is Python %s; the stack needs 3.10 to 3.13: install one of them, or set PYTHON=..." % version)
elif (sys.platform, platform.machine()) != ("linux", "x86_64"):
    print("is for %s on %s; the stack is for Linux on x86-64" % (sys.platform, platform.machine()))
elif not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
    print("has no module venv: sudo apt-get install python%s-venv" % version)
else:
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        print("finds no libnuma.so.1, which vLLM needs: sudo apt-get install libnuma1 (Fedora: numactl-libs)")
'
complaint=
for python in "$@"; do
    # A name may be there and not run: pyenv has one for each version that any of its folders has.
    wrong=$("$python" -c "$check" 2>/dev/null) || continue
    if [ -z "$wrong" ]; then
        same='import sys; print(sys.version_info[:2])'
        if [ "$("$folder/bin/python" -c "$same" 2>/dev/null)" = "$("$python" -c "$same")" ]; then
            exec "$python" -m venv "$folder"
        fi
        exec "$python" -m venv --clear "$folder"
    fi
    complaint=${complaint:-"$python $wrong"}
done
: "${complaint:="${chosen:-none of $*} does not run: sudo apt-get install python3 python3-venv, or set PYTHON=..."}"
echo "error: $complaint" >&2
exit 1
