#!/usr/bin/env bash
# Builds the kernel libraries into DIR (kernels/ of the repository by default), as an npm package:
# kernels.json, package.json and the libraries. Needs g++ >= 12 and nothing else; the same sources,
# compiler and flags give the same bytes. ONNX Runtime's headers are not needed: see custom-op.h.
#
#   model/kernels/build.sh [DIR]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../kernels}
cxx=${CXX:-g++}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# cpu: AMX bf16 and AVX-512, as kernels.json states. No -march: it would bring what that list lacks.
flags=(-std=c++20 -O3 -fPIC -fvisibility=hidden -ffunction-sections -fdata-sections -fno-math-errno -Wall -Wextra -Werror
  -Wno-maybe-uninitialized # gcc 12 warns of its own avx512fintrin.h
  -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512cd -mavx512bf16 -mfma -mamx-tile -mamx-bf16
  -mtune=sapphirerapids "-ffile-prefix-map=$here=model/kernels")
jobs=()
for source in "$here"/cpu/*.cc; do
  "$cxx" "${flags[@]}" -c "$source" -o "$work/$(basename "$source" .cc).o" &
  jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
# The C++ library inside and hidden: nothing to install, nothing to clash with.
printf '{ global: RegisterCustomOps; PeregrineKernelsRefusal; PeregrineTiles*; local: *; };' >"$work/exports"
"$cxx" -shared -static-libstdc++ -static-libgcc -Wl,--exclude-libs=ALL,--version-script="$work/exports" \
  -Wl,--gc-sections,--build-id=none,-s,-z,noexecstack "$work"/*.o -o "$out/libperegrine_kernels_cpu.so"

cp "$here"/package/* "$out/"
