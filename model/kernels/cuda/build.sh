#!/usr/bin/env bash
# Builds the CUDA kernel library into DIR (kernels/cuda of the repository by default), with the kernels.json that an engine
# reads. Needs nvcc 12.3 or later and g++; no GPU, no ONNX Runtime headers (custom-op.h). The CUDA runtime and the C++
# library are inside and hidden: nothing to install, nothing to clash with. Built on Debian 12 it runs where glibc is 2.36 or later.
#
#   model/kernels/cuda/build.sh [DIR]          the library, for compute capability 9.0
# HSTU_RACECHECK=1 builds the library that compute-sanitizer can follow (hopper.cuh).
#
#   model/kernels/cuda/build.sh --host [DIR]   the same ops over plain C++ on the CPU, for tests of the ops: g++ alone
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
host=
if [ "${1:-}" = --host ]; then host=1; shift; fi
out=${1:-$here/../../../kernels/cuda}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$here"

if [ -n "$host" ]; then
  "${CXX:-g++}" -std=c++20 -O2 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror -DPEREGRINE_HOST \
    ops.cc reference.cc -o "$out/libperegrine_kernels_host.so"
  exit
fi

flags=(-std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a --Werror=all-warnings
  ${HSTU_RACECHECK:+-DHSTU_RACECHECK} -Xcompiler "-fPIC,-fvisibility=hidden,-Wall,-ffile-prefix-map=$here=cuda")
jobs=()
compile() { # OBJECT SOURCE FLAGS...
  local object=$1 source=$2
  shift 2
  nvcc "${flags[@]}" "$@" -c "$source" -o "$work/$object.o" 2> >(tee "$work/$object.log" >&2) &
  jobs+=($!)
}
for width in 64 128 256; do compile "attention$width" attention.cu "-DHSTU_WIDTH=$width"; done
compile linear linear.cu
compile rows rows.cu
compile copy copy.cu
compile maps maps.cu
compile attention-entry attention-entry.cc
compile ops ops.cc
for job in "${jobs[@]}"; do wait "$job"; done
# The assembler says so and goes on: a kernel whose products wait for each other takes twice as long.
if grep -h 'wgmma.*serialized' "$work"/*.log; then exit 1; fi
printf '{ global: RegisterCustomOps; PeregrineKernelsRefusal; hstu*; local: *; };' >"$work/exports"
nvcc -shared -cudart static -Xlinker -s -Xlinker --build-id=none -Xlinker --exclude-libs=ALL \
  -Xlinker "--version-script=$work/exports" -Xcompiler -static-libstdc++,-static-libgcc \
  "$work"/*.o -o "$out/libperegrine_kernels_cuda.so"
cp kernels.json "$out/"
