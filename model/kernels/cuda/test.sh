#!/usr/bin/env bash
# On a host with a GPU of compute capability 9.0, nvcc, PyTorch and compute-sanitizer: builds the library into DIR, holds
# every kernel to float64 on every tile shape, looks for bad accesses and races, and prints times.
#
#   model/kernels/cuda/test.sh DIR [PYTHON]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: test.sh DIR [PYTHON]}
python=${2:-python3}
"$here/build.sh" "$out"
library=$out/libperegrine_kernels_cuda.so
"$python" "$here/parity.py" "$library" --times
sanitize() { compute-sanitizer --tool "$1" --error-exitcode 1 "$python" "$here/parity.py" "$2" --quick "${@:3}"; }
sanitize memcheck "$library"
sanitize synccheck "$library" --most 30
# All of them would take hours: a sample, another with every seed.
HSTU_RACECHECK=1 "$here/build.sh" "$out/racecheck"
for seed in 1 2 3 4 5 6; do
  sanitize racecheck "$out/racecheck/libperegrine_kernels_cuda.so" --only attention,times --most 8 --seed "$seed"
done
sanitize racecheck "$out/racecheck/libperegrine_kernels_cuda.so" --only rows,linear --most 8
