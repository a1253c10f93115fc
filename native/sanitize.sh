#!/usr/bin/env bash
# Builds the native part with AddressSanitizer and UndefinedBehaviorSanitizer (GCC, Linux) and runs a command of the
# active Python environment against that build: by default the parity cases at micro-batch 1, 8 and 512.
#
#   native/sanitize.sh                      tests/golden, every case
#   native/sanitize.sh pytest tests/x.py    any command that loads the native library
#
# A finding, in our sources or upstream's, ends the command with a report; the exit status is the command's. The first
# build takes 20 minutes of CPU time, later ones what changed.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$PWD/build/sanitize
cmake -S native -B "$build" -G Ninja -DDELTAMEM_SANITIZE=ON -DPython3_EXECUTABLE="$(command -v python3)" >"$build.log" 2>&1 ||
    { tail -n 5 "$build.log" >&2; exit 1; }
cmake --build "$build" >>"$build.log" 2>&1 || { grep -A 5 -m 1 'error' "$build.log" >&2; exit 1; }
cmake --install "$build" --prefix "$build/native" --component deltamem >>"$build.log"

# The sanitizers' runtimes must be in the process before Python loads the library; libstdc++ must come with them, or
# their exception hook has nothing to call.
runtimes=$(for name in libasan libubsan libstdc++; do "${CXX:-c++}" -print-file-name=$name.so; done | paste -sd' ')
sanitized() {
    # Python's own allocator hides overruns from ASan, and its leaks at exit are not ours. pytest must not capture, nor run
    # in other processes: a report is written just before the process ends.
    env LD_PRELOAD="$runtimes" PYTHONMALLOC=malloc PYTEST_ADDOPTS="--capture=no -n 0 ${PYTEST_ADDOPTS:-}" \
        DELTAMEM_NATIVE_DIR="$build/native" ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS:-}" \
        UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1:suppressions=$PWD/native/ubsan-known.txt:${UBSAN_OPTIONS:-}" "$@"
}

if [ $# -gt 0 ]; then
    sanitized "$@"
else
    # fused is what CPUs run, the others what GPUs do
    for compute in fused graph ops; do
        sanitized python3 -m deltamem_cli adapter verify --compute "$compute" tests/golden/*/
    done
fi
echo "sanitize: no error found" >&2
