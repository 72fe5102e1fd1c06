// How an attention is cut into CTAs: rows of a block and how many CTAs share its keys. A model of time fitted to an H200.
#pragma once
#include <algorithm>

namespace hstu {

struct AttentionShape {
  int width;  ///< of a head, rounded up: 64, 128 or 256
  int rows, keys, heads;  ///< heads of all users
  bool causal, bias;
};

struct AttentionPlan {
  int warpgroups, split;
};

constexpr int kMostSplits = 8;

/// 64, 128 or 256: what a head of `width` is padded to; 0 where none is wide enough.
constexpr int paddedWidth(int width) {
  return width <= 64 ? 64 : width <= 128 ? 128 : width <= 256 ? 256 : 0;
}

constexpr int keysOfTile(int width) { return width == 256 ? 64 : 128; }

/// Three warpgroups leave too few registers for the bias, or for wider heads.
constexpr int mostWarpgroups(const AttentionShape& shape) { return shape.width == 64 && !shape.bias ? 3 : 2; }

/// The cheapest plan. `slots(warpgroups, split)` says how many clusters of such CTAs run at once; `warpgroups` and `split`
/// are kept where they are not 0. Microseconds: a CTA takes a fixed time and one per tile, CTAs go in waves.
template <class Slots>
AttentionPlan planAttention(const AttentionShape& shape, Slots slots, int warpgroups = 0, int split = 0) {
  constexpr double perTile[3][3] = {{.50, 1.08, 1.48}, {.95, 1.6, 0}, {.90, 1.5, 0}};
  const int index = shape.width == 64 ? 0 : shape.width == 128 ? 1 : 2, keysPerTile = keysOfTile(shape.width);
  const int tiles = std::max(1, (shape.keys + keysPerTile - 1) / keysPerTile);
  AttentionPlan best{std::max(1, warpgroups), std::max(1, split)};
  double least = 1e30;
  for (int w = 1; w <= mostWarpgroups(shape); w++) {
    for (int s = 1; s <= kMostSplits; s++) {
      if ((warpgroups && w != warpgroups) || (split && s != split)) continue;
      if (s > tiles || (w == 3 && s > 1)) continue;
      const double blocks = double((shape.rows + w * 64 - 1) / (w * 64)) * shape.heads;
      const double atOnce = slots(w, s);
      double tile = perTile[index][w - 1];
      // Two CTAs then share a multiprocessor.
      if (shape.width == 64 && w == 1 && blocks * s > (s == 1 ? 132 : 100)) tile = .85;
      const double fixed = 5.5 + (s > 1 ? 1.5 + 0.6 * w * (index + 1) + 0.2 * (s - 1) : 0);
      const double perBlock = double((tiles + s - 1) / s) * tile + fixed;
      const double waves = double(long((blocks + atOnce - 1) / atOnce));
      const double total = shape.causal ? std::max(perBlock, blocks * ((0.5 * tiles + 1) / s * tile + fixed * 0.6) / atOnce)
                                        : waves * perBlock;
      if (total < least) {
        least = total;
        best = {w, s};
      }
    }
  }
  return best;
}

struct LinearTile {
  int warpgroups, columns, stages, perMultiprocessor;
};

/// 64 rows per warpgroup.
constexpr LinearTile kLinearTiles[] = {{2, 256, 4, 1}, {2, 128, 3, 2}, {1, 128, 4, 2}, {1, 64, 4, 3}};
constexpr int kLinearTileCount = sizeof(kLinearTiles) / sizeof(kLinearTiles[0]);

struct LinearPlan {
  int tile, split;
};

/// The cheapest tile and split of the depth: CTAs go in waves over the multiprocessors, each takes as long as its products or
/// as the copies that it waits for. Fitted to an H200: at 11 shapes measured it takes a
/// tile and split at most 3 % slower than the fastest of all.
inline LinearPlan planLinear(long rows, int depth, int width, int multiprocessors, int tile = -1, int onlySplit = 0) {
  constexpr double kFlopsPerUs = 5.5e6, kBytesPerUs = 87e3, kLatencyUs = .7, kSumUs = 3.6;
  const int steps = (depth + 63) / 64;
  LinearPlan best{0, 1};
  double least = 1e30;
  for (int t = 0; t < kLinearTileCount; t++) {
    if (tile >= 0 && t != tile) continue;
    const LinearTile& of = kLinearTiles[t];
    const int tileRows = of.warpgroups * 64;
    const double tiles = double((rows + tileRows - 1) / tileRows) * ((width + of.columns - 1) / of.columns);
    for (int split : {1, 2, 4}) {
      if (onlySplit ? split != onlySplit : split > steps) continue;
      const double ctas = tiles * split;
      const double together = std::min<double>(of.perMultiprocessor, double(long((ctas + multiprocessors - 1) / multiprocessors)));
      const double waves = double(long((ctas + multiprocessors * together - 1) / (multiprocessors * together)));
      const double product = together * 2.0 * tileRows * of.columns * 64 / kFlopsPerUs;
      const double copy = together * (tileRows + of.columns) * 64 * 2 / kBytesPerUs;
      const double step = std::max({product, copy, kLatencyUs / of.stages});
      // One CTA's start and end hide behind the products of another on the same multiprocessor.
      const double fixed = together > 1 && split == 1 ? 2 : 3.5;
      const double out = together * tileRows * of.columns * 6e-5;
      const double total = waves * ((steps + split - 1) / split * step + out / split + fixed + (split > 1 ? kSumUs : 0));
      if (total < least) {
        least = total;
        best = {t, split};
      }
    }
  }
  return best;
}

}  // namespace hstu
