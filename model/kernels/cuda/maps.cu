#include "maps.h"
#include <cuda_runtime.h>
#include <cudaTypedefs.h>

namespace hstu {
namespace {

using Encode = PFN_cuTensorMapEncodeTiled_v12000;

/// The driver's function through the runtime: a library that links libcuda would not load without a GPU.
Encode encoder() {
  static const Encode found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? Encode(entry) : Encode(nullptr);
  }();
  return found;
}

template <int Rank>
bool encode(CUtensorMap* map, const void* at, const cuuint64_t (&dims)[Rank], const cuuint64_t (&strides)[Rank - 1], int box) {
  cuuint32_t boxes[Rank] = {64, cuuint32_t(box)}, steps[Rank];
  for (int i = 0; i < Rank; i++) {
    steps[i] = 1;
    if (i > 1) boxes[i] = 1;
  }
  const Encode call = encoder();
  return call != nullptr &&
         call(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, Rank, const_cast<void*>(at), dims, strides, boxes, steps,
              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

bool mapView(CUtensorMap* map, const HstuView& view, int width, int tokens, int heads, int users, int box) {
  return encode<4>(map, view.at, {cuuint64_t(width), cuuint64_t(tokens), cuuint64_t(heads), cuuint64_t(users)},
                   {cuuint64_t(view.row) * 2, cuuint64_t(view.head) * 2, cuuint64_t(view.user) * 2}, box);
}

bool mapMatrix(CUtensorMap* map, const void* at, int64_t rows, int columns, int box) {
  return encode<2>(map, at, {cuuint64_t(columns), cuuint64_t(rows)}, {cuuint64_t(columns) * 2}, box);
}

}  // namespace hstu
