// y = SiLU?(x·w + bias) for sm_90a: float16 in and out, float32 sums. One producer warp feeds boxes of x and w
// by the copy engine, consumer warpgroups of 64 rows multiply them. A CTA takes one tile of y after the other: while it
// writes one out, from registers, the next one's boxes come. CTAs of a cluster have tiles below each other, and each loads a
// part of w for all of them; or they share one tile, whose depth is split, and add up through distributed shared memory.
// Bias and SiLU ride on the way out: as nodes of their own they take as long as the product.
#pragma once
#include "hopper.cuh"
#include "plan.h"
#include "wgmma.cuh"

namespace hstu {

/// Rows of x, as many as `rows`, times the columns begin … end - 1 of w.
struct LinearPart {
  __half* y;
  int64_t rows;
  int begin, end;
  int across;    ///< tiles along the columns
  int clusters;  ///< of CTAs with tiles below each other
};

struct LinearMaps {
  CUtensorMap x[kLinearParts], w;
};

struct LinearParams {
  const __half* bias;
  LinearPart parts[kLinearParts];
  int depth, width, silu;
  int isConstant;  ///< w is, and may be read before what was launched before has ended
  int splits;        ///< CTAs of a cluster that share a tile's depth; above 1 each has one tile
  int clusters;  ///< of all parts; with splits, of tiles
};

/// Of the tile kLinearTiles[Index].
template <int Index>
struct LinearConfig {
  static constexpr LinearTile Tile = kLinearTiles[Index];
  static constexpr int Rows = Tile.warpgroups * 64, Columns = Tile.columns, Depth = 64;
  static constexpr int XBytes = Rows * Depth * 2, WBytes = Depth * Columns * 2, StageBytes = XBytes + WBytes;
  /// Of a box of w: the CTAs that share it load a part each.
  static constexpr int WRows = Depth / Tile.sharers;
  static constexpr int PipeBytes = Tile.stages * StageBytes;
  static constexpr int SumStride = Columns + 8, SumBytes = Tile.sharers == 1 ? Rows * SumStride * 4 : 0;
  static constexpr int MainBytes = PipeBytes > SumBytes ? PipeBytes : SumBytes;
  static constexpr int SharedBytes = 1024 + MainBytes + 2 * Tile.stages * 8;
  /// The producer is one warp behind the warpgroups: a warpgroup of its own would cost two CTAs on one multiprocessor.
  static constexpr int Threads = Tile.warpgroups * 128 + 32;
};

/// Where a CTA's tile lies: first row of x and first column of w.
struct LinearPlace {
  int part, row0, column0;
};

template <int Index>
__device__ __forceinline__ LinearPlace placeOf(const LinearParams& p, int cluster, int sharer) {
  constexpr LinearTile Tile = kLinearTiles[Index];
  int part = 0;
  while (part < kLinearParts - 1 && cluster >= p.parts[part].clusters) cluster -= p.parts[part++].clusters;
  const int across = p.parts[part].across;
  return {part, (cluster / across * Tile.sharers + sharer) * Tile.warpgroups * 64,
          p.parts[part].begin + cluster % across * Tile.columns};
}

template <int Index>
__global__ void __launch_bounds__(LinearConfig<Index>::Threads, LinearConfig<Index>::Tile.perMultiprocessor)
    linear(const __grid_constant__ LinearMaps maps, const __grid_constant__ LinearParams p) {
  using C = LinearConfig<Index>;
  constexpr LinearTile Tile = C::Tile;
  constexpr int Warpgroups = Tile.warpgroups, Columns = Tile.columns, Stages = Tile.stages;
  constexpr bool isShared = Tile.sharers > 1;
  extern __shared__ uint8_t raw[];
  uint8_t* base = aligned(raw);
  const uint32_t sharedX = sharedAddress(base), sharedW = sharedX + Stages * C::XBytes;
  const uint32_t barriers = sharedAddress(base + C::MainBytes);
  const auto full = [&](int s) { return barriers + 8 * s; };
  const auto empty = [&](int s) { return barriers + 8 * (Stages + s); };
  const int splits = isShared ? 1 : p.splits, together = isShared ? Tile.sharers : splits, rank = blockIdx.x % together;
  const int firstCluster = blockIdx.x / together, clusterStep = gridDim.x / together;
  const int sharer = isShared ? rank : 0;
  const int steps = (p.depth + C::Depth - 1) / C::Depth;
  const int first = isShared ? 0 : steps * rank / splits, end = isShared ? steps : steps * (rank + 1) / splits;

  if (threadIdx.x == 0) {
    for (int part = 0; part < kLinearParts; part++) prefetchMap(&maps.x[part]);
    prefetchMap(&maps.w);
    for (int s = 0; s < Stages; s++) {
      barrierInit(full(s), 1);
      // Whoever gets what this CTA loads must have room for it.
      barrierInit(empty(s), Warpgroups * 4 * Tile.sharers);
    }
    barrierInitFence();
  }
  if constexpr (isShared) {
    clusterArriveRelaxed();
    clusterWait();
  } else {
    __syncthreads();
  }
  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == Warpgroups) {
    if (threadIdx.x % 32 == 0) {
      constexpr uint16_t kAll = (1 << Tile.sharers) - 1;
      const int wRow = sharer * C::WRows;
      const auto loadX = [&](const LinearPlace& place, int stage, int i) {
        copyBox(sharedX + stage * C::XBytes, &maps.x[place.part], full(stage), i * C::Depth, place.row0);
      };
      const auto loadW = [&](const LinearPlace& place, int stage, int i) {
        barrierExpect(full(stage), C::StageBytes);
        for (int s = 0; s < Columns / 64; s++)
          copyBox<isShared>(sharedW + stage * C::WBytes + (s * C::Depth + wRow) * 128, &maps.w, full(stage),
                            place.column0 + s * 64, i * C::Depth + wRow, kAll);
      };
      // What the kernel before does not write need not wait for it.
      const int early = p.isConstant ? first + min(Stages, end - first) : first;
      LinearPlace place = placeOf<Index>(p, firstCluster, sharer);
      for (int i = first; i < early; i++) loadW(place, i - first, i);
      waitForBefore();
      int stage = 0;
      uint32_t phase = 0;
      for (int cluster = firstCluster; cluster < p.clusters; cluster += clusterStep) {
        place = placeOf<Index>(p, cluster, sharer);
        for (int i = first; i < end; i++) {
          if (cluster > firstCluster || i >= early) {
            barrierWait(empty(stage), phase ^ 1);
            loadW(place, stage, i);
          }
          loadX(place, stage, i);
          if (++stage == Stages) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
    }
    if (isShared) {
      // Others may still send to this CTA, or tell it of what is free.
      __syncwarp();
      clusterArriveRelaxed();
      clusterWait();
    } else if (splits > 1) {
      __syncwarp();
      clusterArrive();
      clusterWait();
      clusterArrive();
      clusterWait();
    }
    return;
  }

  waitForBefore();
  const int own = warpgroup, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, quad = lane % 4;
  const int localRow = own * 64 + warp * 16 + lane / 4;
  float sum[Columns / 2];
  int stage = 0;
  uint32_t phase = 0;

  const auto multiply = [&]() {
    const auto freeLast = [&]() {
      const uint32_t last = empty(stage == 0 ? Stages - 1 : stage - 1);
      if constexpr (isShared) {
        if (lane < Tile.sharers) barrierArriveAt(last, lane);
      } else {
        if (lane == 0) barrierArrive(last);
      }
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

  if (isShared || splits == 1) {
    for (int cluster = firstCluster; cluster < p.clusters; cluster += clusterStep) {
      const LinearPlace place = placeOf<Index>(p, cluster, sharer);
      // A thread has two columns of every eight. Their biases are there when the products are.
      uint32_t biases[Columns / 8];
#pragma unroll
      for (int j = 0; j < Columns / 8; j++) {
        const int column = place.column0 + 8 * j + 2 * quad;
        biases[j] = p.bias != nullptr && column < p.width ? __ldg(reinterpret_cast<const uint32_t*>(p.bias + column)) : 0;
      }
      multiply();
      if (isShared && cluster + clusterStep >= p.clusters) {
        __syncwarp();
        clusterArriveRelaxed();
      }
      const LinearPart& part = p.parts[place.part];
      const int64_t row = place.row0 + localRow, stride = part.end - part.begin;
      __half* y = part.y - part.begin;
      // Four lanes change their columns for eight columns of a row each.
#pragma unroll
      for (int g = 0; g < Columns / 32; g++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          uint32_t words[4];
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const int j = 4 * g + i;
            const float2 bias = unpackHalves(biases[j]);
            float a = sum[4 * j + 2 * e] + bias.x, b = sum[4 * j + 2 * e + 1] + bias.y;
            if (p.silu) {
              a = siluOfHalf(0.5f * a);
              b = siluOfHalf(0.5f * b);
            }
            words[i] = packHalves(a, b);
          }
          transposeQuad(words, quad);
          const int column = place.column0 + 32 * g + 8 * quad;
          if (row + 8 * e < part.rows && column < part.end)
            *reinterpret_cast<uint4*>(y + (row + 8 * e) * stride + column) = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
    if (isShared) {
      __syncwarp();
      clusterWait();
    }
    return;
  }

  if constexpr (!isShared) {
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
    const LinearPlace place = placeOf<Index>(p, firstCluster, 0);
    const LinearPart& part = p.parts[place.part];
    const int firstRow = C::Rows * rank / splits, shareRows = C::Rows * (rank + 1) / splits - firstRow;
    for (int i = own * 128 + thread; i < shareRows * kGroups; i += Warpgroups * 128) {
      const int row = firstRow + i / kGroups, column = i % kGroups * 8;
      const int64_t r = int64_t(place.row0) + row;
      if (r >= part.rows || place.column0 + column >= part.end) continue;
      const float* at = sums + row * C::SumStride + column;
      float total[8] = {};
      for (int k = 0; k < splits; k++) {
        const float4 a = readCluster(sharedAddress(at), k), b = readCluster(sharedAddress(at + 4), k);
        total[0] += a.x, total[1] += a.y, total[2] += a.z, total[3] += a.w;
        total[4] += b.x, total[5] += b.y, total[6] += b.z, total[7] += b.w;
      }
      if (p.bias) {
        const uint4 packed = __ldg(reinterpret_cast<const uint4*>(p.bias + place.column0 + column));
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
      __half* to = part.y + r * (part.end - part.begin) + place.column0 - part.begin + column;
      *reinterpret_cast<uint4*>(to) = make_uint4(packHalves(total[0], total[1]), packHalves(total[2], total[3]),
                                                       packHalves(total[4], total[5]), packHalves(total[6], total[7]));
    }
    __syncwarp();
    clusterArrive();
    clusterWait();
  }
}

}  // namespace hstu
