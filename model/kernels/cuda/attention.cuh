// Fused HSTU attention for sm_90a: out = scale·(SiLU(alpha·Q·Kᵀ + bias)·V [+ SiLU(alpha·q·k + bias)·v of the row itself]),
// float16 in and out, float32 sums. One producer warp feeds K and V tiles by the copy engine; each consumer warpgroup has
// 64 rows of Q, scores and weights stay in its registers (the weights are the next product's A operand). The bias never
// exists as a matrix: the producer's other warps prepare each tile's times and positions. Keys may be split over a
// cluster of CTAs, which add up their partial sums through distributed shared memory: one launch, no workspace, no
// atomics, the same bits every time.
#pragma once
#include "attention-config.cuh"
#include "hopper.cuh"
#include "wgmma.cuh"

namespace hstu {

template <int Width, int Keys, int Warpgroups, int Stages, bool Causal, bool Bias>
__global__ void __launch_bounds__((Warpgroups + 1) * 128,
                                  (AttentionConfig<Width, Keys, Warpgroups, Stages, Causal, Bias>::PerMultiprocessor))
    attention(const __grid_constant__ AttentionMaps maps, const AttentionParams p) {
  using C = AttentionConfig<Width, Keys, Warpgroups, Stages, Causal, Bias>;
  extern __shared__ uint8_t raw[];
  uint8_t* base = reinterpret_cast<uint8_t*>((uintptr_t(raw) + 1023) & ~uintptr_t(1023));
  const uint32_t sharedQ = sharedAddress(base), sharedK = sharedQ + C::QueryBytes, sharedV = sharedK + Stages * C::TileBytes;
  float* timeWeights = reinterpret_cast<float*>(base + C::MainBytes);
  auto* biasTiles = reinterpret_cast<typename C::Tile*>(base + C::MainBytes + C::TimeBytes);
  const uint32_t barriers = sharedAddress(base + C::MainBytes + C::BiasBytes);
  const auto fullK = [&](int s) { return barriers + 8 * s; };
  const auto fullV = [&](int s) { return barriers + 8 * (Stages + s); };
  const auto emptyK = [&](int s) { return barriers + 8 * (2 * Stages + s); };
  const auto emptyV = [&](int s) { return barriers + 8 * (3 * Stages + s); };
  const auto fullBias = [&](int s) { return barriers + 8 * (4 * Stages + s); };
  const auto emptyBias = [&](int s) { return barriers + 8 * (5 * Stages + s); };
  const uint32_t fullQ = barriers + 8 * 6 * Stages;

  // Causal: every head's longest blocks start first, or the last to start would be the last to end by far.
  const int block = Causal ? int(gridDim.z - 1 - blockIdx.z) : int(blockIdx.y);
  const int headOfUser = Causal ? blockIdx.y : blockIdx.z;
  const int user = headOfUser / p.heads, head = headOfUser - user * p.heads;
  const int row0 = block * C::Rows, splits = gridDim.x, rank = blockIdx.x;
  if (threadIdx.x == 0) {
    prefetchMap(&maps.q);
    prefetchMap(&maps.k);
    prefetchMap(&maps.v);
    for (int s = 0; s < Stages; s++) {
      barrierInit(fullK(s), 1);
      barrierInit(fullV(s), 1);
      barrierInit(emptyK(s), Warpgroups * 4);
      barrierInit(emptyV(s), Warpgroups * 4);
      barrierInit(fullBias(s), kArrivals);
      barrierInit(emptyBias(s), Warpgroups * 4 * kArrivals);
    }
    barrierInit(fullQ, 1);
    barrierInitFence();
  }
  waitForBefore();
  const int realKeys = p.lengths ? min(p.keys, int(p.lengths[user])) : p.keys;
  const int ownKeys = Causal ? min(p.rows, row0 + C::Rows) : 0;
  const int sharedTiles = (realKeys + Keys - 1) / Keys, tiles = sharedTiles + (ownKeys + Keys - 1) / Keys;
  const int first = int(int64_t(tiles) * rank / splits), end = int(int64_t(tiles) * (rank + 1) / splits);
  if (Bias && threadIdx.x < kBuckets) timeWeights[threadIdx.x] = 0.5f * __half2float(p.timeW[threadIdx.x]);
  __syncthreads();

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == 0) {
    giveRegisters<C::ProducerRegisters>();
    if (threadIdx.x == 0) {
      barrierExpect(fullQ, C::QueryBytes);
      for (int s = 0; s < C::Slabs; s++) copyBox(sharedQ + s * C::Rows * 128, &maps.q, fullQ, s * 64, row0, head, user);
      int stage = 0;
      uint32_t phase = 0;
      for (int t = first; t < end; t++) {
        const bool isOwn = Causal && t >= sharedTiles;
        const CUtensorMap *k = isOwn ? &maps.ownK : &maps.k, *v = isOwn ? &maps.ownV : &maps.v;
        const int token = (isOwn ? t - sharedTiles : t) * Keys;
        barrierWait(emptyK(stage), phase ^ 1);
        barrierExpect(fullK(stage), C::TileBytes);
        for (int s = 0; s < C::Slabs; s++)
          copyBox(sharedK + stage * C::TileBytes + s * Keys * 128, k, fullK(stage), s * 64, token, head, user);
        barrierWait(emptyV(stage), phase ^ 1);
        barrierExpect(fullV(stage), C::TileBytes);
        for (int s = 0; s < C::Slabs; s++)
          copyBox(sharedV + stage * C::TileBytes + s * Keys * 128, v, fullV(stage), s * 64, token, head, user);
        if (++stage == Stages) {
          stage = 0;
          phase ^= 1;
        }
      }
    } else if (Bias && threadIdx.x >= 32) {
      // A warp per stage: the loads of several tiles are under way.
      const int helper = threadIdx.x / 32 - 1, lane = threadIdx.x % 32, last = p.positions - 1;
      for (int t = first + helper; helper < Stages && t < end; t += Stages) {
        const int stage = helper;
        const uint32_t phase = (t - first) / Stages & 1;
        const bool isOwn = Causal && t >= sharedTiles;
        const int token = (isOwn ? t - sharedTiles : t) * Keys, limit = isOwn ? p.rows : p.keys;
        const int64_t* times = p.times + int64_t(user) * (p.keys + (Causal ? p.rows : 0)) + (isOwn ? p.keys : 0);
        barrierWait(emptyBias(stage), phase ^ 1);
        typename C::Tile& tile = biasTiles[stage];
#pragma unroll
        for (int c = lane; c < Keys; c += 32) {
          // What lies behind the last key is masked; a copy of that key does not widen its neighbours' range.
          const int64_t time = __ldg(times + min(token + c, limit - 1));
          if constexpr (Causal) {
            int64_t low = time, high = time;
#pragma unroll
            for (int other = 1; other < 8; other *= 2) {
              low = min(low, __shfl_xor_sync(~0u, low, other));
              high = max(high, __shfl_xor_sync(~0u, high, other));
            }
            tile.times[c] = time;
            if (c % 8 == 0) {
              tile.earliest[c / 8] = low;
              tile.latest[c / 8] = high;
            }
          } else {
            const int distance = min(max(realKeys - (token + c), 0), last);
            tile.half[c] = 0.5f * __half2float(p.posW[distance]) + timeWeights[timeBucket(p.queryTimes[user] - time)];
          }
        }
        if constexpr (Causal) {
          const int nearest = row0 + (isOwn ? 0 : p.keys) - (token + Keys - 1);
#pragma unroll
          for (int i = lane; i < C::Rows + Keys; i += 32)
            tile.position[i] = 0.5f * __half2float(p.posW[min(max(nearest + i, 0), last)]);
        }
        arriveTogether(fullBias(stage), lane);
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

  takeRegisters<C::ConsumerRegisters>();
  const int own = warpgroup - 1, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  // A thread has rows r0 and r0 + 8 of an m64 accumulator, columns 8j + 2·quad and the one behind, for every j.
  const int quad = lane % 4, localRow = own * 64 + warp * 16 + lane / 4, r0 = row0 + localRow;
  float sum[Width / 2];
#pragma unroll
  for (int i = 0; i < Width / 2; i++) sum[i] = 0.f;

  if (!Causal && rank == 0) {
    // Starts with the row's own SiLU(alpha·q·k + bias)·v; all loads are in flight at once.
    const int64_t ra = min(r0, p.rows - 1), rb = min(r0 + 8, p.rows - 1);
    const auto pairs = [&](const HstuView& x, int64_t row) {
      return reinterpret_cast<const uint32_t*>(static_cast<const __half*>(x.at) + row * x.row + user * x.user + head * x.head) + quad;
    };
    const uint32_t *va = pairs(p.ownV, ra), *vb = pairs(p.ownV, rb);
    // Loads first, without a branch between them: each would wait for the one before.
    uint32_t values[Width / 4];
#pragma unroll
    for (int j = 0; j < Width / 8; j++) {
      values[2 * j] = 8 * j < p.dv ? __ldg(va + 4 * j) : 0;
      values[2 * j + 1] = 8 * j < p.dv ? __ldg(vb + 4 * j) : 0;
    }
    const uint32_t *qa = pairs(p.q, ra), *qb = pairs(p.q, rb), *ka = pairs(p.ownK, ra), *kb = pairs(p.ownK, rb);
    float dot[2] = {0.f, 0.f};
    constexpr int kBatch = 8;
#pragma unroll
    for (int j0 = 0; j0 < Width / 8; j0 += kBatch) {
      uint32_t x[kBatch][4];
#pragma unroll
      for (int j = 0; j < kBatch; j++) {
        const bool isHere = 8 * (j0 + j) < p.dqk;
        x[j][0] = isHere ? __ldg(qa + 4 * (j0 + j)) : 0;
        x[j][1] = isHere ? __ldg(ka + 4 * (j0 + j)) : 0;
        x[j][2] = isHere ? __ldg(qb + 4 * (j0 + j)) : 0;
        x[j][3] = isHere ? __ldg(kb + 4 * (j0 + j)) : 0;
      }
#pragma unroll
      for (int j = 0; j < kBatch; j++) {
        const float2 q0 = unpackHalves(x[j][0]), k0 = unpackHalves(x[j][1]), q1 = unpackHalves(x[j][2]), k1 = unpackHalves(x[j][3]);
        dot[0] = fmaf(q0.x, k0.x, fmaf(q0.y, k0.y, dot[0]));
        dot[1] = fmaf(q1.x, k1.x, fmaf(q1.y, k1.y, dot[1]));
      }
    }
#pragma unroll
    for (int j = 0; j < Width / 8; j++) {
      const float2 a = unpackHalves(values[2 * j]), b = unpackHalves(values[2 * j + 1]);
      sum[4 * j] = a.x;
      sum[4 * j + 1] = a.y;
      sum[4 * j + 2] = b.x;
      sum[4 * j + 3] = b.y;
    }
    const float bias = Bias ? 0.5f * __half2float(p.posW[0]) + timeWeights[0] : 0.f;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      dot[e] += __shfl_xor_sync(~0u, dot[e], 1);
      dot[e] += __shfl_xor_sync(~0u, dot[e], 2);
      const float weight = siluOfHalf(fmaf(dot[e], p.halfAlpha, bias));
#pragma unroll
      for (int j = 0; j < Width / 8; j++) {
        sum[4 * j + 2 * e] *= weight;
        sum[4 * j + 2 * e + 1] *= weight;
      }
    }
  }

  int64_t rowTime[2] = {0, 0}, rowEarliest = 0, rowLatest = 0;
  if constexpr (Bias && Causal) {
    const int64_t* times = p.times + int64_t(user) * (p.keys + p.rows) + p.keys;
    rowTime[0] = __ldg(times + min(r0, p.rows - 1));
    rowTime[1] = __ldg(times + min(r0 + 8, p.rows - 1));
    rowEarliest = min(rowTime[0], rowTime[1]);
    rowLatest = max(rowTime[0], rowTime[1]);
#pragma unroll
    for (int other = 4; other < 32; other *= 2) {
      rowEarliest = min(rowEarliest, __shfl_xor_sync(~0u, rowEarliest, other));
      rowLatest = max(rowLatest, __shfl_xor_sync(~0u, rowLatest, other));
    }
  }

  barrierWait(fullQ, 0);
  const uint32_t ownQ = sharedQ + own * 64 * 128;
  float S[Keys / 2];
  uint32_t P[Keys / 4];

  const auto scores = [&](int stage) {
    productFence();
#pragma unroll
    for (int s = 0; s < C::Slabs; s++)
#pragma unroll
      for (int k = 0; k < 4; k++)
        Product<Keys>::fromShared(S, tileDescriptor(ownQ + s * C::Rows * 128 + k * 32, 16, 1024),
                                  tileDescriptor(sharedK + stage * C::TileBytes + s * Keys * 128 + k * 32, 16, 1024), s | k);
    productCommit();
  };

  const auto weights = [&](int t, int stage, uint32_t phase) {
    const bool isOwn = Causal && t >= sharedTiles;
    const int token = (isOwn ? t - sharedTiles : t) * Keys;
    const int lastKey = (isOwn ? p.rows : realKeys) - 1;
    const bool isMasked = token + Keys - 1 > (isOwn ? min(lastKey, row0 + own * 64) : lastKey);
    // Counted from this thread's first column: 8j + parity must not be above.
    const int most0 = (isOwn ? min(lastKey, r0) : lastKey) - token - 2 * quad;
    const int most1 = (isOwn ? min(lastKey, r0 + 8) : lastKey) - token - 2 * quad;
    const typename C::Tile& tile = biasTiles[Bias ? stage : 0];
    uint32_t isOneBucket = 0, isTwoBuckets = 0;
    int64_t bucketEnd = 0;
    float endWeight = 0.f, above[2] = {0.f, 0.f};
    if constexpr (Bias) barrierWait(fullBias(stage), phase);
    if constexpr (Bias && Causal) {
      // Lane l asks for the nearest, lane 16 + l for the farthest pair of the warp's 16 rows and eight keys: mostly both
      // fall into one bucket or into neighbours, and the eight keys need no search.
      const int group = min(lane % 16, Keys / 8 - 1);
      const int bucket = timeBucket(lane < 16 ? rowEarliest - tile.latest[group] : rowLatest - tile.earliest[group]);
      const int farther = __shfl_xor_sync(~0u, bucket, 16) - bucket;
      isOneBucket = __ballot_sync(~0u, farther == 0);
      isTwoBuckets = __ballot_sync(~0u, farther == 1);
      bucketEnd = endOfBucket(bucket);
      endWeight = timeWeights[bucket];
      above[0] = tile.position[localRow + 8 + Keys - 1 - 2 * quad];
      above[1] = tile.position[localRow + 8 + Keys - 2 - 2 * quad];
    }
#pragma unroll
    for (int j = 0; j < Keys / 8; j++) {
      float half[4];
      if constexpr (!Bias) {
#pragma unroll
        for (int e = 0; e < 4; e++) half[e] = S[4 * j + e] * p.halfAlpha;
      } else if constexpr (!Causal) {
        const float2 bias = *reinterpret_cast<const float2*>(&tile.half[8 * j + 2 * quad]);
#pragma unroll
        for (int e = 0; e < 4; e++) half[e] = fmaf(S[4 * j + e], p.halfAlpha, e & 1 ? bias.y : bias.x);
      } else {
        const int nearest = localRow + Keys - 1 - 2 * quad - 8 * j;
        const float here[2] = {tile.position[nearest], tile.position[nearest - 1]};
        half[0] = fmaf(S[4 * j], p.halfAlpha, here[0]);
        half[1] = fmaf(S[4 * j + 1], p.halfAlpha, here[1]);
        // Eight rows further down is as far as eight keys before.
        half[2] = fmaf(S[4 * j + 2], p.halfAlpha, above[0]);
        half[3] = fmaf(S[4 * j + 3], p.halfAlpha, above[1]);
        above[0] = here[0];
        above[1] = here[1];
        if (isOneBucket >> j & 1) {
          const float weight = __shfl_sync(~0u, endWeight, j);
#pragma unroll
          for (int e = 0; e < 4; e++) half[e] += weight;
        } else if (isTwoBuckets >> j & 1) {
          const float near = __shfl_sync(~0u, endWeight, j), far = __shfl_sync(~0u, endWeight, j + 16);
          const int64_t edge = __shfl_sync(~0u, bucketEnd, j);
          const longlong2 times = *reinterpret_cast<const longlong2*>(&tile.times[8 * j + 2 * quad]);
#pragma unroll
          for (int e = 0; e < 4; e++) half[e] += rowTime[e >> 1] - (e & 1 ? times.y : times.x) >= edge ? far : near;
        } else {
#pragma unroll
          for (int e = 0; e < 4; e++)
            half[e] += timeWeights[timeBucket(rowTime[e >> 1] - tile.times[8 * j + 2 * quad + (e & 1)])];
        }
      }
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float weight = siluOfHalf(half[e]);
        S[4 * j + e] = isMasked && 8 * j + (e & 1) > (e < 2 ? most0 : most1) ? 0.f : weight;
      }
    }
    if constexpr (Bias) {
      arriveTogether(emptyBias(stage), lane);
    }
  };

  const auto packWeights = [&]() {
#pragma unroll
    for (int i = 0; i < Keys / 4; i++) P[i] = packHalves(S[2 * i], S[2 * i + 1]);
  };

  const auto addValues = [&](int stage) {
    productFence();
#pragma unroll
    for (int k = 0; k < Keys / 16; k++)
      Product<Width>::fromRegisters(sum, P + 4 * k,
                                    tileDescriptor(sharedV + stage * C::TileBytes + k * 2048, Keys * 128, 1024));
    productCommit();
  };

  if (first < end) {
    // The scores of the next tile and the values of this one are in flight together.
    int stage = 0;
    uint32_t phase = 0;
    barrierWait(fullK(stage), phase);
    pin(S);
    scores(stage);
    productWait<0>();
    pin(S);
    if (lane == 0) barrierArrive(emptyK(stage));
    weights(first, stage, phase);
    packWeights();
    for (int t = first; t < end - 1; t++) {
      int nextStage = stage + 1;
      uint32_t nextPhase = phase;
      if (nextStage == Stages) {
        nextStage = 0;
        nextPhase ^= 1;
      }
      barrierWait(fullK(nextStage), nextPhase);
      pin(S);
      scores(nextStage);
      barrierWait(fullV(stage), phase);
      pin(sum);
      addValues(stage);
      productWait<1>();
      pin(S);
      if (lane == 0) barrierArrive(emptyK(nextStage));
      weights(t + 1, nextStage, nextPhase);
      productWait<0>();
      pin(sum);
      if (lane == 0) barrierArrive(emptyV(stage));
      packWeights();
      stage = nextStage;
      phase = nextPhase;
    }
    barrierWait(fullV(stage), phase);
    pin(sum);
    addValues(stage);
    productWait<0>();
    pin(sum);
  }

  __half* out = p.out + user * p.outUser + int64_t(head) * p.dv;
  if (splits == 1) {
    // A thread has two columns of every eight; four of them change theirs for eight columns of a row each.
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int r = r0 + 8 * e;
#pragma unroll
      for (int g = 0; g < Width / 32; g++) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int j = 4 * g + i;
          words[i] = packHalves(sum[4 * j + 2 * e] * p.scale, sum[4 * j + 2 * e + 1] * p.scale);
        }
        transposeQuad(words, quad);
        const int column = 32 * g + 8 * quad;
        if (r < p.rows && column < p.dv)
          *reinterpret_cast<uint4*>(out + r * p.outRow + column) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
    return;
  }

  // The pipeline's memory takes the sums once every consumer is done with it.
  asm volatile("bar.sync 1, %0;" ::"n"(Warpgroups * 128) : "memory");
  float* sums = reinterpret_cast<float*>(base);
#pragma unroll
  for (int e = 0; e < 2; e++)
#pragma unroll
    for (int j = 0; j < Width / 8; j++)
      *reinterpret_cast<float2*>(sums + (localRow + 8 * e) * C::SumStride + 8 * j + 2 * quad) =
          make_float2(sum[4 * j + 2 * e], sum[4 * j + 2 * e + 1]);
  __syncwarp();
  clusterArrive();
  clusterWait();
  // Every CTA of the cluster adds up its share of the rows.
  const int firstRow = C::Rows * rank / splits, shareRows = C::Rows * (rank + 1) / splits - firstRow;
  for (int i = own * 128 + thread; i < shareRows * (Width / 4); i += Warpgroups * 128) {
    const int row = firstRow + i / (Width / 4), column = i % (Width / 4) * 4;
    const uint32_t address = sharedAddress(sums + row * C::SumStride + column);
    float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int k0 = 0; k0 < splits; k0 += 4) {
      float4 part[4];
#pragma unroll
      for (int k = 0; k < 4; k++) part[k] = k0 + k < splits ? readCluster(address, k0 + k) : make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        total.x += part[k].x;
        total.y += part[k].y;
        total.z += part[k].z;
        total.w += part[k].w;
      }
    }
    const int r = row0 + row;
    if (r < p.rows && column < p.dv)
      *reinterpret_cast<uint2*>(out + r * p.outRow + column) =
          make_uint2(packHalves(total.x * p.scale, total.y * p.scale), packHalves(total.z * p.scale, total.w * p.scale));
  }
  __syncwarp();
  clusterArrive();
  clusterWait();
}

}  // namespace hstu
