#include "linear.cuh"
#include <algorithm>
#include <utility>
#include "launch.h"
#include "launcher.cuh"
#include "maps.h"

namespace hstu {
namespace {

template <int Index>
struct LinearLauncher {
  using C = LinearConfig<Index>;
  static constexpr LinearTile tile = C::Tile;
  static constexpr auto kernel = linear<Index>;

  static cudaError_t prepare() {
    static const cudaError_t done = prepareKernel(kernel, C::SharedBytes);
    return done;
  }

  /// Clusters that run at once.
  static int slots() {
    static const int found = tile.sharers == 1 ? multiprocessors() * tile.perMultiprocessor
                                               : clustersAtOnce(kernel, C::Threads, C::SharedBytes, tile.sharers);
    return found;
  }

  static const char* launch(const HstuLinearArgs& a, int split) {
    if (const cudaError_t error = prepare()) return cudaGetErrorString(error);
    LinearMaps maps;
    LinearParams p{};
    int known = -1;
    for (int i = 0; i < kLinearParts; i++) {
      const HstuLinearPart& part = a.parts[i];
      const auto parts = [](int64_t length, int each) { return int((length + each - 1) / each); };
      const int across = parts(part.end - part.begin, tile.columns), down = parts(part.rows, C::Rows * tile.sharers);
      p.parts[i] = {static_cast<__half*>(part.y), part.rows, part.begin, part.end, std::max(1, across), down * across};
      p.clusters += down * across;
      if (part.rows == 0) continue;
      if (!mapMatrix(&maps.x[i], part.x, part.rows, a.depth, C::Rows)) return kAlignment;
      known = i;
    }
    // A map of nothing cannot be made; nothing is read through it either.
    for (int i = 0; i < kLinearParts; i++)
      if (a.parts[i].rows == 0) maps.x[i] = maps.x[known];
    if (!mapMatrix(&maps.w, a.w, a.depth, a.width, C::WRows)) return kAlignment;
    p.bias = static_cast<const __half*>(a.bias);
    p.depth = a.depth;
    p.width = a.width;
    p.silu = a.silu;
    p.isConstant = a.isConstant;
    p.splits = split;
    const int together = split > 1 ? split : tile.sharers;
    const int clusters = split > 1 ? p.clusters : std::min(p.clusters, slots());
    return launchKernel(kernel, dim3(clusters * together), C::Threads, C::SharedBytes, together > 1 ? together : 0, a.stream, maps, p);
  }

  static constexpr const char* kAlignment = "x and w must begin at multiples of 16 bytes";
};

template <int... Tiles>
const char* dispatch(const HstuLinearArgs& a, LinearPlan plan, std::integer_sequence<int, Tiles...>) {
  const char* result = "no such tile";
  ((plan.tile == Tiles ? void(result = LinearLauncher<Tiles>::launch(a, plan.split)) : void()), ...);
  return result;
}

}  // namespace
}  // namespace hstu

extern "C" const char* hstuLinear(const HstuLinearArgs* args) {
  const HstuLinearArgs& a = *args;
  if (a.depth < 8 || a.width < 8 || a.depth % 8 || a.width % 8) return "a linear layer's width and depth must be multiples of 8";
  hstu::LinearShape shapes[hstu::kLinearParts];
  for (int i = 0; i < hstu::kLinearParts; i++) {
    const HstuLinearPart& part = a.parts[i];
    shapes[i] = {part.rows, part.end - part.begin};
    if (part.rows > 0 && (part.begin % 8 || part.end % 8 || part.begin < 0 || part.end <= part.begin || part.end > a.width))
      return "a part's columns must begin and end at multiples of 8";
    if (uintptr_t(part.y) % 16) return "bias and y must begin at multiples of 16 bytes";
  }
  if (uintptr_t(a.bias) % 16) return "bias and y must begin at multiples of 16 bytes";
  if (shapes[0].rows + shapes[1].rows + shapes[2].rows == 0) return nullptr;
  hstu::LinearPlan plan = hstu::planLinear(shapes, a.depth, hstu::multiprocessors(), a.tile - 1, a.split);
  // Every CTA of a cluster has a step of the depth at least.
  while (plan.split > 1 && plan.split > (a.depth + 63) / 64) plan.split /= 2;
  return hstu::dispatch(a, plan, std::make_integer_sequence<int, hstu::kLinearTileCount>());
}
