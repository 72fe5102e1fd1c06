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
for tool in memcheck racecheck; do
  compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" "$here/parity.py" "$library" --quick
done
