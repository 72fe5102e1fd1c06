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

/// A CTA's tile, 64 rows per warpgroup, and how many CTAs below each other load w for each other.
struct LinearTile {
  int warpgroups, columns, stages, perMultiprocessor, sharers;
};

constexpr LinearTile kLinearTiles[] = {{2, 128, 6, 1, 2}, {2, 128, 6, 1, 1}, {1, 128, 4, 2, 1},
                                       {1, 128, 8, 1, 2}, {1, 64, 4, 3, 1}, {1, 64, 12, 1, 1}};
constexpr int kLinearTileCount = sizeof(kLinearTiles) / sizeof(kLinearTiles[0]);
constexpr int kLinearParts = 3;

struct LinearPlan {
  int tile, split;
};

/// Rows and columns of a part.
struct LinearShape {
  long rows;
  int columns;
};

/// The cheapest tile and split of the depth: CTAs go in waves over the multiprocessors, and a step of the depth takes as long as
/// its products, as the copies into the multiprocessor, or as shared memory is busy with both. Fitted to an H200: of 19 shapes
/// (256 to 16,384 rows, depths of 512 to 3,072, widths of 512 to 4,096, some in two or three parts) 18 get a tile that is at most
/// 8 % slower than the fastest, one 13 %.
inline LinearPlan planLinear(const LinearShape (&parts)[kLinearParts], int depth, int multiprocessors, int tile = -1, int onlySplit = 0) {
  constexpr double kFlopsPerUs = 5.5e6, kBytesPerUs = 109e3, kSharedBytesPerUs = 229e3, kSumUs = 3.6;
  const int steps = (depth + 63) / 64;
  LinearPlan best{std::max(tile, 0), 1};
  double least = 1e30;
  for (int t = 0; t < kLinearTileCount; t++) {
    if (tile >= 0 && t != tile) continue;
    const LinearTile& of = kLinearTiles[t];
    const int tileRows = of.warpgroups * 64, groupRows = tileRows * of.sharers;
    double tiles = 0;
    for (const LinearShape& part : parts)
      tiles += double((part.rows + groupRows - 1) / groupRows * of.sharers) * ((part.columns + of.columns - 1) / of.columns);
    for (int split : {1, 2, 4}) {
      // The CTAs of a cluster share a tile or w, not both.
      if (split > 1 && of.sharers > 1) continue;
      if (onlySplit ? split != onlySplit : split > steps) continue;
      const double ctas = tiles * split;
      // Sums over a cluster pay where multiprocessors had no work.
      if (!onlySplit && split > 1 && ctas > multiprocessors) continue;
      const double together = std::min<double>(of.perMultiprocessor, double(long((ctas + multiprocessors - 1) / multiprocessors)));
      const double waves = double(long((ctas + multiprocessors * together - 1) / (multiprocessors * together)));
      const double product = 2.0 * tileRows * of.columns * 64 / kFlopsPerUs;
      const double copied = (tileRows + of.columns) * 64 * 2, read = of.warpgroups * (64 + of.columns) * 64 * 2;
      const double step = together * std::max({product, copied / kBytesPerUs, (copied + read) / kSharedBytesPerUs});
      const double out = together * tileRows * of.columns * 1.8e-5;
      // CTAs that share begin earlier, with half of the copies, and then wait for each other. One that has a multiprocessor to
      // itself has no other's products to hide its start, but a deep ring.
      const bool isAlone = of.sharers == 1 && of.perMultiprocessor == 1;
      const double fixed = of.sharers > 1 ? .8 : isAlone ? 1.5 : 1.2, slower = of.sharers > 1 ? 1.03 : isAlone ? .97 : 1;
      const double total =
          fixed + waves * ((steps + split - 1) / split * step * slower + out / split + .87) + (split > 1 ? kSumUs : 0);
      if (total < least) {
        least = total;
        best = {t, split};
      }
    }
  }
  return best;
}

}  // namespace hstu
