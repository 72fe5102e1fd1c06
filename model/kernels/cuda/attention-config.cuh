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

/// What of times and their weights no tile changes, for differences below 2^31 - 1; all weights halved, as SiLU takes them.
struct alignas(16) BiasTables {
  NearSegment segments[kNearSegments];
  int32_t begins[kNearBuckets];
  uint16_t weights[kNearBuckets];
  uint8_t buckets[kNearSegments];  ///< of a segment's smallest number
  int32_t rowTimes[128];           ///< of the block's rows, where not all have the same
};

/// Edges of buckets among 32 keys that are prepared row by row.
constexpr int kMostEdges = 2;

/// What a tile of keys adds to the scores, halved: written by the producer's warps, read by the consumers. Pairs are two
/// halves in a word, of a key and the next. The keys of a tile mostly lie in order of their times: an edge between two
/// buckets then is, row by row, a number of keys. Keys are taken 32 at a time, rows 16, as a warp has them.
template <int Rows, int Keys>
struct alignas(16) BiasTile {
  static constexpr int Groups = Keys / 32;  ///< of keys
  static_assert(Rows / 16 * Groups <= 32, "a lane per group and warp");
  /// By rows and keys: weight of the nearest bucket, and above it of the next one (no edge: the same); 0 for keys that are searched.
  uint32_t weight[Rows / 16 * Groups];
  uint32_t beyond[Rows / 16 * Groups];  ///< weight beyond the second edge, twice
  uint8_t keys[kMostEdges][Rows][4];    ///< by edge, the nearest first, and row: how many of each 32 keys are beyond
  uint32_t position[Rows + Keys];       ///< pairs of pos_w, by row + Keys - key
  int32_t times[Keys];                  ///< as rows' times are: see kNear
  uint32_t slow, searched;              ///< bit i: what weight[i] stands for has a second edge, or is searched; is searched
  int32_t isFar;                        ///< a time is outside of what `times` can say
};

/// Times count from this long before the block's first row; from 0 to 2^31 - 2 they say all, and differ by less than 2^31 - 1.
constexpr int64_t kNear = 1 << 30;

/// Of a time that counts so: whether it says all, and itself or what is nearest to it.
__device__ __forceinline__ bool isNearTime(int64_t since) { return since >= 0 && since < INT32_MAX; }
__device__ __forceinline__ int32_t nearTime(int64_t since) { return int32_t(max(int64_t(0), min(int64_t(INT32_MAX - 1), since))); }

/// Candidates share one row of the bias: pairs by the quad's thread that has them, eight keys further each.
template <int Keys>
struct alignas(16) BiasRow {
  static constexpr int Stride = Keys / 8 + 4;
  uint32_t pairs[4 * Stride];
};

template <int Width, int Keys, int Warpgroups, int Stages, bool Causal, bool Bias>
struct AttentionConfig {
  static constexpr int Rows = Warpgroups * 64, Slabs = Width / 64;
  static constexpr int QueryBytes = Rows * Width * 2, TileBytes = Keys * Width * 2;
  static constexpr int PipeBytes = QueryBytes + 2 * Stages * TileBytes;
  static constexpr int SumStride = Width + 8, SumBytes = Rows * SumStride * 4;
  static constexpr int MainBytes = PipeBytes > SumBytes ? PipeBytes : SumBytes;
  using Tile = std::conditional_t<Causal && Bias, BiasTile<Rows, Keys>, BiasRow<Keys>>;
  static constexpr int TableBytes = Bias ? int(sizeof(BiasTables)) : 0;
  static constexpr int BiasBytes = Bias ? TableBytes + Stages * int(sizeof(Tile)) : 0;
  static constexpr int BarrierBytes = (6 * Stages + 1 + Bias) * 8;
  static constexpr int SharedBytes = 1024 + MainBytes + BiasBytes + BarrierBytes;
  static constexpr int MostForTwo = 113 * 1024;
  static constexpr int PerMultiprocessor = Warpgroups == 1 && SharedBytes <= MostForTwo ? 2 : 1;
  /// What the consumers leave: the warps that prepare the bias want more than the one that only copies.
  static constexpr int ProducerRegisters = Warpgroups == 3 ? 32 : !Bias ? 40 : PerMultiprocessor == 2 ? 48 : 56;
  static constexpr int ConsumerRegisters =
      Warpgroups == 3 ? 160 : Warpgroups == 2 ? (Bias ? 224 : 232) : PerMultiprocessor == 2 ? 208 : 240;
};

}  // namespace hstu
