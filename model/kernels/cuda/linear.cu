#include "linear.cuh"
#include <algorithm>
#include <utility>
#include "launch.h"
#include "launcher.cuh"
#include "maps.h"
#include "plan.h"

namespace hstu {
namespace {

int multiprocessors() {
  static const int count = [] {
    int device = 0, found = 0;
    const bool isKnown = cudaGetDevice(&device) == cudaSuccess &&
                         cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
    return isKnown && found > 0 ? found : 132;
  }();
  return count;
}

template <int Tile>
const char* launch(const HstuLinearArgs& a, int split) {
  constexpr LinearTile tile = kLinearTiles[Tile];
  using C = LinearConfig<tile.warpgroups, tile.columns, tile.stages, tile.perMultiprocessor>;
  constexpr auto kernel = linear<tile.warpgroups, tile.columns, tile.stages, tile.perMultiprocessor>;
  static const cudaError_t prepared = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::SharedBytes);
  if (prepared != cudaSuccess) return cudaGetErrorString(prepared);
  LinearMaps maps;
  // A map of nothing cannot be made; nothing is read through it either.
  const bool isMapped = (a.rows ? mapMatrix(&maps.x, a.x, a.rows, a.depth, C::Rows) : mapMatrix(&maps.x, a.x2, a.rows2, a.depth, C::Rows)) &&
                        (a.rows2 ? mapMatrix(&maps.x2, a.x2, a.rows2, a.depth, C::Rows) : true) &&
                        mapMatrix(&maps.w, a.w, a.depth, a.width, C::Depth);
  if (!isMapped) return "x and w must begin at multiples of 16 bytes";
  if (!a.rows2) maps.x2 = maps.x;
  const int columnTiles = (a.width + tile.columns - 1) / tile.columns;
  const auto rowTiles = [](int64_t rows) { return int((rows + C::Rows - 1) / C::Rows); };
  const int tiles = (rowTiles(a.rows) + rowTiles(a.rows2)) * columnTiles;
  const LinearParams p{static_cast<const __half*>(a.bias), static_cast<__half*>(a.y), static_cast<__half*>(a.y2), a.rows, a.rows2,
                       rowTiles(a.rows), a.depth, a.width, a.silu, split, columnTiles, tiles};
  const int ctas = split > 1 ? tiles * split : std::min(tiles, multiprocessors() * tile.perMultiprocessor);
  return launchKernel(kernel, dim3(ctas), C::Threads, C::SharedBytes, split, a.stream, maps, p);
}

template <int... Tiles>
const char* dispatch(const HstuLinearArgs& a, LinearPlan plan, std::integer_sequence<int, Tiles...>) {
  const char* result = "no such tile";
  ((plan.tile == Tiles ? void(result = launch<Tiles>(a, plan.split)) : void()), ...);
  return result;
}

}  // namespace
}  // namespace hstu

extern "C" const char* hstuLinear(const HstuLinearArgs* args) {
  const HstuLinearArgs& a = *args;
  if (a.rows + a.rows2 == 0) return nullptr;
  if (a.depth < 8 || a.width < 8 || a.depth % 8 || a.width % 8) return "a linear layer's width and depth must be multiples of 8";
  if ((uintptr_t(a.bias) | uintptr_t(a.y) | uintptr_t(a.y2)) % 16) return "bias and y must begin at multiples of 16 bytes";
  hstu::LinearPlan plan = hstu::planLinear(a.rows + a.rows2, a.depth, a.width, hstu::multiprocessors(), a.tile - 1, a.split);
  // Every CTA of a cluster has a step of the depth at least.
  while (plan.split > 1 && plan.split > (a.depth + 63) / 64) plan.split /= 2;
  return hstu::dispatch(a, plan, std::make_integer_sequence<int, hstu::kLinearTileCount>());
}
