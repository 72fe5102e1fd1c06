// What the attention kernel is told, and how a CTA's shared memory and registers are shared out.
#pragma once
#include <cuda.h>
#include <cuda_fp16.h>
#include <type_traits>
#include "bucket.h"
#include "launch.h"

namespace hstu {

struct AttentionParams {
  HstuView q, ownK, ownV;
  __half* out;
  int64_t outRow, outUser;
  int heads, dqk, dv, rows, keys, positions;
  const int64_t *lengths, *times, *queryTimes;
  const __half *posW, *timeW;
  float halfAlpha, scale;
};

/// Tiles of K and V: of the part that every row sees, and of the rows' own tokens.
struct AttentionMaps {
  CUtensorMap q, k, v, ownK, ownV;
};

/// For 16 rows and eight keys that fall into one bucket or two neighbours: half of the nearer one's weight, what the farther
/// one has more, and where it begins.
struct alignas(16) BiasStep {
  float near, more;
  int32_t edge, unused;
};

/// What a tile of keys adds to the scores: written by the producer's warps, read by the consumers. Times count from the
/// block's first row.
template <int Rows, int Keys>
struct alignas(16) BiasTile {
  BiasStep steps[Rows / 16][Keys / 8];  ///< of a warp's rows
  int32_t times[Keys];
  float position[Rows + Keys];  ///< half of pos_w, by row + Keys - 1 - key
  /// Bits of eight keys each for a warp's rows: from bit 0 on those of more than one bucket, from bit 16 on of more than two.
  uint32_t several[Rows / 16];
  int32_t isFar;  ///< a time is not within kNear of the block's first row
};

/// Times so close to each other differ by less than 2^31.
constexpr int64_t kNear = 1 << 30;

/// Candidates share one row of the bias.
template <int Keys>
struct alignas(16) BiasRow {
  float half[Keys];
};

template <int Width, int Keys, int Warpgroups, int Stages, bool Causal, bool Bias>
struct AttentionConfig {
  static constexpr int Rows = Warpgroups * 64, Slabs = Width / 64;
  static constexpr int QueryBytes = Rows * Width * 2, TileBytes = Keys * Width * 2;
  static constexpr int PipeBytes = QueryBytes + 2 * Stages * TileBytes;
  static constexpr int SumStride = Width + 8, SumBytes = Rows * SumStride * 4;
  static constexpr int MainBytes = PipeBytes > SumBytes ? PipeBytes : SumBytes;
  using Tile = std::conditional_t<Causal, BiasTile<Rows, Keys>, BiasRow<Keys>>;
  static constexpr int SegmentBytes = Bias && Causal ? kNearSegments * int(sizeof(NearSegment)) : 0;
  static constexpr int BiasBytes = Bias ? SegmentBytes + Stages * int(sizeof(Tile)) : 0;
  static constexpr int BarrierBytes = (6 * Stages + 1) * 8;
  static constexpr int SharedBytes = 1024 + MainBytes + BiasBytes + BarrierBytes;
  static constexpr int MostForTwo = 113 * 1024;
  static constexpr int PerMultiprocessor = Warpgroups == 1 && SharedBytes <= MostForTwo ? 2 : 1;
  /// What the consumers leave: the warps that prepare the bias want more than the one that only copies.
  static constexpr int ProducerRegisters = Warpgroups == 3 ? 32 : Bias ? 56 : 40;
  static constexpr int ConsumerRegisters =
      Warpgroups == 3 ? 160 : Warpgroups == 2 ? (Bias ? 224 : 232) : PerMultiprocessor == 2 ? (Bias ? 200 : 208) : 240;
};

}  // namespace hstu
