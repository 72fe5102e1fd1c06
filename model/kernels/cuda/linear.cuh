// y = SiLU?(x·w + bias) for sm_90a: float16 in and out, float32 sums. One producer warp feeds boxes of x and w
// by the copy engine, consumer warpgroups of 64 rows multiply them. A CTA takes one tile of y after the other: while it
// writes one out, from registers, the next one's boxes come. Or the depth is split over a cluster of CTAs with one tile, which
// add up through distributed shared memory. Bias and SiLU ride on the way out: as nodes of their own they take as long as
// the product.
#pragma once
#include "hopper.cuh"
#include "wgmma.cuh"

namespace hstu {

/// Rows of x in two parts, of which the second may have none.
struct LinearMaps {
  CUtensorMap x, x2, w;
};

struct LinearParams {
  const __half* bias;
  __half *y, *y2;
  int64_t rows, rows2;
  int rowTiles;  ///< of the first part
  int depth, width, silu;
  int splits;        ///< CTAs of a cluster that share a tile's depth; above 1 each has one tile
  int columnTiles, tiles;
};

template <int Warpgroups, int Columns, int Stages, int PerMultiprocessor_>
struct LinearConfig {
  static constexpr int Rows = Warpgroups * 64, Depth = 64, PerMultiprocessor = PerMultiprocessor_;
  static constexpr int XBytes = Rows * Depth * 2, WBytes = Depth * Columns * 2, StageBytes = XBytes + WBytes;
  static constexpr int PipeBytes = Stages * StageBytes;
  static constexpr int SumStride = Columns + 8, SumBytes = Rows * SumStride * 4;
  static constexpr int MainBytes = PipeBytes > SumBytes ? PipeBytes : SumBytes;
  static constexpr int SharedBytes = 1024 + MainBytes + 2 * Stages * 8;
  /// The producer is one warp behind the warpgroups: a warpgroup of its own would cost two CTAs on one multiprocessor.
  static constexpr int Threads = Warpgroups * 128 + 32;
};

template <int Warpgroups, int Columns, int Stages, int PerMultiprocessor>
__global__ void __launch_bounds__(Warpgroups * 128 + 32, PerMultiprocessor)
    linear(const __grid_constant__ LinearMaps maps, const LinearParams p) {
  using C = LinearConfig<Warpgroups, Columns, Stages, PerMultiprocessor>;
  extern __shared__ uint8_t raw[];
  uint8_t* base = aligned(raw);
  const uint32_t sharedX = sharedAddress(base), sharedW = sharedX + Stages * C::XBytes;
  const uint32_t barriers = sharedAddress(base + C::MainBytes);
  const auto full = [&](int s) { return barriers + 8 * s; };
  const auto empty = [&](int s) { return barriers + 8 * (Stages + s); };
  const int splits = p.splits, rank = blockIdx.x % splits, firstTile = blockIdx.x / splits, tileStep = gridDim.x / splits;
  const int steps = (p.depth + C::Depth - 1) / C::Depth, first = steps * rank / splits, end = steps * (rank + 1) / splits;

  if (threadIdx.x == 0) {
    prefetchMap(&maps.x);
    prefetchMap(&maps.w);
    for (int s = 0; s < Stages; s++) {
      barrierInit(full(s), 1);
      barrierInit(empty(s), Warpgroups * 4);
    }
    barrierInitFence();
  }
  __syncthreads();
  waitForBefore();

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == Warpgroups) {
    if (threadIdx.x % 32 == 0) {
      int stage = 0;
      uint32_t phase = 0;
      for (int tile = firstTile; tile < p.tiles; tile += tileStep) {
        const int rowTile = tile / p.columnTiles, column0 = tile % p.columnTiles * Columns;
        const bool isSecond = rowTile >= p.rowTiles;
        const CUtensorMap* x = isSecond ? &maps.x2 : &maps.x;
        const int row0 = (isSecond ? rowTile - p.rowTiles : rowTile) * C::Rows;
        for (int i = first; i < end; i++) {
          barrierWait(empty(stage), phase ^ 1);
          barrierExpect(full(stage), C::StageBytes);
          copyBox(sharedX + stage * C::XBytes, x, full(stage), i * C::Depth, row0);
          for (int s = 0; s < Columns / 64; s++)
            copyBox(sharedW + stage * C::WBytes + s * C::Depth * 128, &maps.w, full(stage), column0 + s * 64, i * C::Depth);
          if (++stage == Stages) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
    }
    if (splits > 1) {
      __syncwarp();
      clusterArrive();
      clusterWait();
      clusterArrive();
      clusterWait();
    }
    return;
  }

  const int own = warpgroup, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, quad = lane % 4;
  const int localRow = own * 64 + warp * 16 + lane / 4;
  float sum[Columns / 2];
  int stage = 0;
  uint32_t phase = 0;

  const auto multiply = [&]() {
    const auto freeLast = [&]() {
      if (lane == 0) barrierArrive(empty(stage == 0 ? Stages - 1 : stage - 1));
    };
    for (int i = first; i < end; i++) {
      barrierWait(full(stage), phase);
      pin(sum);
      productFence();
#pragma unroll
      for (int k = 0; k < C::Depth / 16; k++)
        Product<Columns>::fromSharedByRows(
            sum, tileDescriptor(sharedX + stage * C::XBytes + own * 64 * 128 + k * 32, 16, 1024),
            tileDescriptor(sharedW + stage * C::WBytes + k * 2048, C::Depth * 128, 1024), i > first || k > 0);
      productCommit();
      // The products before these are done then, and their stage is free.
      productWait<1>();
      pin(sum);
      if (i > first) freeLast();
      if (++stage == Stages) {
        stage = 0;
        phase ^= 1;
      }
    }
    productWait<0>();
    pin(sum);
    freeLast();
  };

  if (splits == 1) {
    for (int tile = firstTile; tile < p.tiles; tile += tileStep) {
      multiply();
      const int column0 = tile % p.columnTiles * Columns;
      const int rowTile = tile / p.columnTiles;
      const bool isSecond = rowTile >= p.rowTiles;
      const int64_t row = int64_t(isSecond ? rowTile - p.rowTiles : rowTile) * C::Rows + localRow;
      const int64_t rows = isSecond ? p.rows2 : p.rows;
      __half* y = isSecond ? p.y2 : p.y;
      // A thread has two columns of every eight; four of them change theirs for eight columns of a row each.
#pragma unroll
      for (int g = 0; g < Columns / 32; g++) {
        float bias[8] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int column = column0 + 32 * g + 8 * i + 2 * quad;
          if (p.bias == nullptr || column >= p.width) continue;
          const float2 pair = unpackHalves(__ldg(reinterpret_cast<const uint32_t*>(p.bias + column)));
          bias[2 * i] = pair.x;
          bias[2 * i + 1] = pair.y;
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
          uint32_t words[4];
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const int j = 4 * g + i;
            float a = sum[4 * j + 2 * e] + bias[2 * i], b = sum[4 * j + 2 * e + 1] + bias[2 * i + 1];
            if (p.silu) {
              a = siluOfHalf(0.5f * a);
              b = siluOfHalf(0.5f * b);
            }
            words[i] = packHalves(a, b);
          }
          transposeQuad(words, quad);
          const int column = column0 + 32 * g + 8 * quad;
          if (row + 8 * e < rows && column < p.width)
            *reinterpret_cast<uint4*>(y + (row + 8 * e) * p.width + column) = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
    return;
  }

  multiply();
  // The pipeline's memory takes the sums once every consumer is done with it.
  asm volatile("bar.sync 1, %0;" ::"n"(Warpgroups * 128) : "memory");
  float* sums = reinterpret_cast<float*>(base);
#pragma unroll
  for (int e = 0; e < 2; e++)
#pragma unroll
    for (int j = 0; j < Columns / 8; j++)
      *reinterpret_cast<float2*>(sums + (localRow + 8 * e) * C::SumStride + 8 * j + 2 * quad) =
          make_float2(sum[4 * j + 2 * e], sum[4 * j + 2 * e + 1]);
  __syncwarp();
  clusterArrive();
  clusterWait();
  // Every CTA of the cluster finishes its share of the rows, eight columns at a time.
  constexpr int kGroups = Columns / 8;
  const int rowTile = firstTile / p.columnTiles, column0 = firstTile % p.columnTiles * Columns;
  const bool isSecond = rowTile >= p.rowTiles;
  const int row0 = (isSecond ? rowTile - p.rowTiles : rowTile) * C::Rows;
  const int64_t rows = isSecond ? p.rows2 : p.rows;
  __half* y = isSecond ? p.y2 : p.y;
  const int firstRow = C::Rows * rank / splits, shareRows = C::Rows * (rank + 1) / splits - firstRow;
  for (int i = own * 128 + thread; i < shareRows * kGroups; i += Warpgroups * 128) {
    const int row = firstRow + i / kGroups, column = i % kGroups * 8;
    const int64_t r = int64_t(row0) + row;
    if (r >= rows || column0 + column >= p.width) continue;
    const float* at = sums + row * C::SumStride + column;
    float total[8] = {};
    for (int k = 0; k < splits; k++) {
      const float4 a = readCluster(sharedAddress(at), k), b = readCluster(sharedAddress(at + 4), k);
      total[0] += a.x, total[1] += a.y, total[2] += a.z, total[3] += a.w;
      total[4] += b.x, total[5] += b.y, total[6] += b.z, total[7] += b.w;
    }
    if (p.bias) {
      const uint4 packed = __ldg(reinterpret_cast<const uint4*>(p.bias + column0 + column));
      const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const float2 pair = unpackHalves(words[c]);
        total[2 * c] += pair.x;
        total[2 * c + 1] += pair.y;
      }
    }
    if (p.silu) {
#pragma unroll
      for (int c = 0; c < 8; c++) total[c] = siluOfHalf(0.5f * total[c]);
    }
    const int64_t to = r * p.width + column0 + column;
    *reinterpret_cast<uint4*>(y + to) = make_uint4(packHalves(total[0], total[1]), packHalves(total[2], total[3]),
                                                     packHalves(total[4], total[5]), packHalves(total[6], total[7]));
  }
  __syncwarp();
  clusterArrive();
  clusterWait();
}

}  // namespace hstu
