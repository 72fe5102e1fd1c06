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
  uint8_t* base = aligned(raw);
  const uint32_t sharedQ = sharedAddress(base), sharedK = sharedQ + C::QueryBytes, sharedV = sharedK + Stages * C::TileBytes;
  [[maybe_unused]] auto* segments = reinterpret_cast<NearSegment*>(base + C::MainBytes);
  auto* biasTiles = reinterpret_cast<typename C::Tile*>(base + C::MainBytes + C::SegmentBytes);
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
  const auto halfTimeWeight = [&](int bucket) { return 0.5f * __half2float(__ldg(p.timeW + bucket)); };
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
      const int64_t* allTimes = p.times + int64_t(user) * (p.keys + (Causal ? p.rows : 0));
      int64_t zero = 0;
      bool isFarRow = false;
      // Of rows 32i … 32i + 15, and in the upper half of the warp of the sixteen behind them.
      [[maybe_unused]] int32_t rowEarliest[C::Rows / 32], rowLatest[C::Rows / 32];
      if constexpr (Causal) {
        zero = __ldg(allTimes + p.keys + row0);
#pragma unroll
        for (int i = 0; i < C::Rows / 32; i++) {
          const int64_t since = __ldg(allTimes + p.keys + min(row0 + 32 * i + lane, p.rows - 1)) - zero;
          isFarRow |= since <= -kNear || since >= kNear;
          rowEarliest[i] = rowLatest[i] = int32_t(max(-kNear, min(kNear, since)));
#pragma unroll
          for (int other = 1; other < 16; other *= 2) {
            rowEarliest[i] = min(rowEarliest[i], __shfl_xor_sync(~0u, rowEarliest[i], other));
            rowLatest[i] = max(rowLatest[i], __shfl_xor_sync(~0u, rowLatest[i], other));
          }
        }
        for (int i = helper * 32 + lane; i < kNearSegments; i += 96)
          segments[i] = nearSegment(i, reinterpret_cast<const uint16_t*>(p.timeW));
        // Whoever gets a tile may then read them.
        asm volatile("bar.sync 2, 96;" ::: "memory");
      }
      for (int t = first + helper; helper < Stages && t < end; t += Stages) {
        const int stage = helper;
        const uint32_t phase = (t - first) / Stages & 1;
        const bool isOwn = Causal && t >= sharedTiles;
        const int token = (isOwn ? t - sharedTiles : t) * Keys, limit = isOwn ? p.rows : p.keys;
        const int64_t* times = allTimes + (isOwn ? p.keys : 0);
        barrierWait(emptyBias(stage), phase ^ 1);
        typename C::Tile& tile = biasTiles[stage];
        if constexpr (Causal) {
          bool isFar = isFarRow;
          // Of the eight keys that lane % 16 stands for.
          int32_t earliest = 0, latest = 0;
#pragma unroll
          for (int i = 0; i < Keys / 32; i++) {
            // What lies behind the last key is masked; a copy of that key does not widen its neighbours' range.
            const int64_t since = __ldg(times + min(token + 32 * i + lane, limit - 1)) - zero;
            const int32_t time = int32_t(max(-kNear, min(kNear, since)));
            isFar |= since <= -kNear || since >= kNear;
            int32_t low = time, high = time;
#pragma unroll
            for (int other = 1; other < 8; other *= 2) {
              low = min(low, __shfl_xor_sync(~0u, low, other));
              high = max(high, __shfl_xor_sync(~0u, high, other));
            }
            tile.times[32 * i + lane] = time;
            low = __shfl_sync(~0u, low, lane % 4 * 8);
            high = __shfl_sync(~0u, high, lane % 4 * 8);
            if (lane % 16 / 4 == i) {
              earliest = low;
              latest = high;
            }
          }
          isFar = __any_sync(~0u, isFar);
          if (lane == 0) tile.isFar = isFar;
          const bool isGroup = lane % 16 < Keys / 8;
#pragma unroll
          for (int i = 0; i < C::Rows / 32; i++) {
            const int near = timeBucket(rowEarliest[i] - latest), far = timeBucket(rowLatest[i] - earliest);
            const float weight = halfTimeWeight(near);
            const int64_t edge = endOfBucket(near);
            if (isGroup)
              tile.steps[2 * i + lane / 16][lane % 16] =
                  BiasStep{weight, halfTimeWeight(far) - weight, int32_t(edge < INT32_MAX ? edge : INT32_MAX), 0};
            const uint32_t two = __ballot_sync(~0u, isGroup && (isFar || far > near));
            const uint32_t more = __ballot_sync(~0u, isGroup && (isFar || far > near + 1));
            if (lane % 16 == 0)
              tile.several[2 * i + lane / 16] = (two >> lane & 0xFFFF) | (more >> lane & 0xFFFF) << 16;
          }
          const int nearest = row0 + (isOwn ? 0 : p.keys) - (token + Keys - 1);
#pragma unroll
          for (int i = lane; i < C::Rows + Keys; i += 32)
            tile.position[i] = 0.5f * __half2float(p.posW[min(max(nearest + i, 0), last)]);
        } else {
          int64_t since[Keys / 32];
          float position[Keys / 32];
#pragma unroll
          for (int i = 0; i < Keys / 32; i++) {
            const int key = token + lane + 32 * i;
            since[i] = __ldg(times + min(key, limit - 1));
            position[i] = __half2float(p.posW[min(max(realKeys - key, 0), last)]);
          }
          const int64_t now = __ldg(p.queryTimes + user);
#pragma unroll
          for (int i = 0; i < Keys / 32; i++)
            tile.half[lane + 32 * i] = fmaf(0.5f, position[i], halfTimeWeight(timeBucket(now - since[i])));
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
    const float bias = Bias ? 0.5f * __half2float(p.posW[0]) + halfTimeWeight(0) : 0.f;
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

  // Counted as the tiles' times are.
  [[maybe_unused]] int32_t rowTime[2] = {0, 0};
  if constexpr (Bias && Causal) {
    const int64_t* times = p.times + int64_t(user) * (p.keys + p.rows) + p.keys;
    const int64_t zero = __ldg(times + row0);
#pragma unroll
    for (int e = 0; e < 2; e++)
      rowTime[e] = int32_t(max(-kNear, min(kNear, __ldg(times + min(r0 + 8 * e, p.rows - 1)) - zero)));
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

  /// S as weights; keys that a row does not see get none where `isMasked`.
  const auto weigh = [&](auto masked, auto simple, int t, int stage, [[maybe_unused]] uint32_t several) {
    constexpr bool isMasked = decltype(masked)::value;
    [[maybe_unused]] constexpr bool isSimple = decltype(simple)::value;
    const bool isOwn = Causal && t >= sharedTiles;
    const int token = (isOwn ? t - sharedTiles : t) * Keys;
    const int lastKey = (isOwn ? p.rows : realKeys) - 1;
    // Counted from this thread's first column: 8j + parity must not be above.
    const int most0 = (isOwn ? min(lastKey, r0) : lastKey) - token - 2 * quad;
    const int most1 = (isOwn ? min(lastKey, r0 + 8) : lastKey) - token - 2 * quad;
    [[maybe_unused]] const typename C::Tile& tile = biasTiles[Bias ? stage : 0];
    [[maybe_unused]] float above[2] = {0.f, 0.f};
    [[maybe_unused]] const BiasStep* steps = nullptr;
    if constexpr (Bias && Causal) {
      steps = tile.steps[own * 4 + warp];
      above[0] = tile.position[localRow + 8 + Keys - 1 - 2 * quad];
      above[1] = tile.position[localRow + 8 + Keys - 2 - 2 * quad];
    }
    // Eight keys at a time; `buckets`: of their pairs with the warp's rows, 3 for more than two.
    const auto eight = [&](int j, auto buckets) {
      [[maybe_unused]] constexpr int kCount = decltype(buckets)::value;
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
        // Eight rows further down is as far as eight keys before.
        const float position[4] = {here[0], here[1], above[0], above[1]};
        above[0] = here[0];
        above[1] = here[1];
        if constexpr (kCount == 1) {
          const float near = steps[j].near;
#pragma unroll
          for (int e = 0; e < 4; e++) half[e] = fmaf(S[4 * j + e], p.halfAlpha, position[e] + near);
        } else if constexpr (kCount == 2) {
          const int2 times = *reinterpret_cast<const int2*>(&tile.times[8 * j + 2 * quad]);
          const BiasStep step = steps[j];
          const int32_t since[2] = {rowTime[0] - step.edge, rowTime[1] - step.edge};
#pragma unroll
          for (int e = 0; e < 4; e++) {
            half[e] = fmaf(S[4 * j + e], p.halfAlpha, position[e] + step.near);
            if ((e & 1 ? times.y : times.x) <= since[e >> 1]) half[e] += step.more;
          }
        } else if (!tile.isFar) {
          const int2 times = *reinterpret_cast<const int2*>(&tile.times[8 * j + 2 * quad]);
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const int seconds = max(rowTime[e >> 1] - (e & 1 ? times.y : times.x), 1);
            const NearSegment segment = segments[nearSegmentOf(__float_as_uint(__int2float_rz(seconds)))];
            const uint32_t weight = seconds >= segment.edge ? segment.weights >> 16 : segment.weights & 0xFFFF;
            half[e] = fmaf(0.5f, __half2float(__ushort_as_half(uint16_t(weight))), fmaf(S[4 * j + e], p.halfAlpha, position[e]));
          }
        } else {
          const int64_t* all = p.times + int64_t(user) * (p.keys + p.rows);
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const int64_t time = __ldg(all + p.keys + min(r0 + 8 * (e >> 1), p.rows - 1));
            const int64_t keyTime = __ldg(all + (isOwn ? p.keys : 0) + min(token + 8 * j + 2 * quad + (e & 1), lastKey));
            half[e] = fmaf(S[4 * j + e], p.halfAlpha, position[e]) + halfTimeWeight(timeBucket(time - keyTime));
          }
        }
      }
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float weight = siluOfHalf(half[e]);
        S[4 * j + e] = isMasked && 8 * j + (e & 1) > (e < 2 ? most0 : most1) ? 0.f : weight;
      }
    };
    if constexpr (!Bias || !Causal) {
#pragma unroll
      for (int j = 0; j < Keys / 8; j++) eight(j, std::integral_constant<int, 1>());
    } else if constexpr (isSimple) {
      // A branch for every 32 keys: loads and arithmetic of four times eight overlap.
#pragma unroll
      for (int j0 = 0; j0 < Keys / 8; j0 += 4) {
        if (several >> j0 & 15) {
#pragma unroll
          for (int j = j0; j < j0 + 4; j++) eight(j, std::integral_constant<int, 2>());
        } else {
#pragma unroll
          for (int j = j0; j < j0 + 4; j++) eight(j, std::integral_constant<int, 1>());
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < Keys / 8; j++) {
        if (several >> (16 + j) & 1) {
          eight(j, std::integral_constant<int, 3>());
        } else {
          eight(j, std::integral_constant<int, 2>());
        }
      }
    }
  };

  const auto weights = [&](int t, int stage, uint32_t phase) {
    const bool isOwn = Causal && t >= sharedTiles;
    const int lastOfTile = (isOwn ? t - sharedTiles : t) * Keys + Keys - 1;
    const int mostOfAll = isOwn ? min(p.rows - 1, row0 + own * 64) : realKeys - 1;
    uint32_t several = 0;
    if constexpr (Bias) barrierWait(fullBias(stage), phase);
    if constexpr (Bias && Causal) several = biasTiles[stage].several[own * 4 + warp];
    if (lastOfTile > mostOfAll || several >> 16) {
      weigh(std::true_type(), std::false_type(), t, stage, several);
    } else {
      weigh(std::false_type(), std::true_type(), t, stage, several);
    }
    if constexpr (Bias) arriveTogether(emptyBias(stage), lane);
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
