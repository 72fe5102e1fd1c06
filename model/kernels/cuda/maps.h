// Tensor maps for the copy engine: made on the host at every launch, passed by value.
#pragma once
#include <cuda.h>
#include "launch.h"

namespace hstu {

/// (tokens, heads, users) rows of `width` columns, in boxes of 64 columns x `box` tokens; false where the copy engine cannot
/// read it: addresses and strides are multiples of 16 bytes.
bool mapView(CUtensorMap* map, const HstuView& view, int width, int tokens, int heads, int users, int box);

/// (rows, columns), contiguous, in boxes of 64 columns x `box` rows.
bool mapMatrix(CUtensorMap* map, const void* at, int64_t rows, int columns, int box);

}  // namespace hstu
