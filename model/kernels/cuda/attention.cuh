// Fused HSTU attention for sm_90a: out = scale·(SiLU(alpha·Q·Kᵀ + bias)·V [+ SiLU(alpha·q·k + bias)·v of the row itself]),
// float16 in and out, float32 sums. One producer warp feeds K and V tiles by the copy engine; each consumer warpgroup has
// 64 rows of Q, scores and weights stay in its registers (the weights are the next product's A operand). The bias never
// exists as a matrix: the producer's other warps prepare each tile's times and positions (attention-bias.cuh), and the
// consumers look it up while the tile's scores are computed. Bias and SiLU are computed in pairs of halves. Keys may be split over a
// cluster of CTAs, which add up their partial sums through distributed shared memory: one launch, no workspace, no
// atomics, the same bits every time.
#pragma once
#include "attention-bias.cuh"
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
  [[maybe_unused]] auto& tables = *reinterpret_cast<BiasTables*>(base + C::MainBytes);
  [[maybe_unused]] auto* biasTiles = reinterpret_cast<typename C::Tile*>(base + C::MainBytes + C::TableBytes);
  const uint32_t barriers = sharedAddress(base + C::MainBytes + C::BiasBytes);
  const auto fullK = [&](int s) { return barriers + 8 * s; };
  const auto fullV = [&](int s) { return barriers + 8 * (Stages + s); };
  const auto emptyK = [&](int s) { return barriers + 8 * (2 * Stages + s); };
  const auto emptyV = [&](int s) { return barriers + 8 * (3 * Stages + s); };
  const auto fullBias = [&](int s) { return barriers + 8 * (4 * Stages + s); };
  const auto emptyBias = [&](int s) { return barriers + 8 * (5 * Stages + s); };
  const uint32_t fullQ = barriers + 8 * 6 * Stages, fullTables = fullQ + 8;

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
    if (Bias) barrierInit(fullTables, 3 * kArrivals);
    barrierInitFence();
  }
  [[maybe_unused]] const KnownSegments segments(Bias && threadIdx.x >= 32 && threadIdx.x < 128 ? int(threadIdx.x) - 32 : -1);
  waitForBefore();
  const int realKeys = p.lengths ? min(p.keys, int(p.lengths[user])) : p.keys;
  const int ownKeys = Causal ? min(p.rows, row0 + C::Rows) : 0;
  const int sharedTiles = (realKeys + Keys - 1) / Keys, tiles = sharedTiles + (ownKeys + Keys - 1) / Keys;
  const int first = int(int64_t(tiles) * rank / splits), end = int(int64_t(tiles) * (rank + 1) / splits);
  const auto halfTimeWeight = [&](int bucket) { return halfWeight(p, bucket); };
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
      if constexpr (Bias)
        prepareBias<C, Keys, Stages, Causal>(p, {user, row0, realKeys, sharedTiles, first, end}, tables, biasTiles, segments,
                                             {fullTables, fullBias(0), emptyBias(0)});
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

  barrierWait(fullQ, 0);
  const uint32_t ownQ = sharedQ + own * 64 * 128;
  float S[Keys / 2];
  // Pairs of halves, of row r0 in even places and of the row eight below in odd ones: the weights that a product reads; of
  // the next tile half of what SiLU is taken of, and its hyperbolic tangent. Nothing may be written into P while that
  // product is under way, nor copied into it: the assembler would make it wait for all. The bias, halved: of candidates
  // one pair for both rows. Wider heads have no registers for a causal bias beside the scores: theirs is added when those are there.
  uint32_t P[Keys / 4];
  constexpr bool kIsLate = Bias && Causal && Width > 64;
  [[maybe_unused]] uint32_t H[!Bias ? 1 : Keys / 4], tanhs[!Bias ? 1 : Keys / 4], B[!Bias || kIsLate ? 1 : Causal ? Keys / 4 : Keys / 8];
  [[maybe_unused]] const uint32_t halfAlphas = packHalves(p.halfAlpha, p.halfAlpha);

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

  /// Half of what SiLU is taken of. What no half can say is the largest that one can: nothing less would be left of it below 0,
  /// and nothing more above.
  [[maybe_unused]] const auto halfOf = [&](int i, uint32_t bias) {
    return fmaHalves(packBounded(S[2 * i], S[2 * i + 1]), halfAlphas, bias);
  };

  /// What times add to 32 keys: the nearest bucket's weight, beyond its edge the next one's, and so on; `keys` of this thread's
  /// rows, by edge.
  [[maybe_unused]] const auto timesOf = [&](uint32_t (&T)[8], const auto& tile, int group, int at, const uint2 (&keys)[2]) {
    const uint32_t weights = tile.weight[at], edges = tile.edges[at], farthest = edges >> 8, toColumn = packHalves(-2.f * quad, -2.f * quad);
    const auto isBeyond = [&](uint32_t (&mask)[8], uint32_t edge) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const uint32_t count = __byte_perm(edge < 4 ? keys[e].x : keys[e].y, kWholeHalf, 0x4040 + (edge & 3) * 0x101);
#pragma unroll
        for (int i = e; i < 8; i += 2) mask[i] = halvesBelow(wholeHalves(32 * group + i / 2 * 8), addHalves(count, toColumn));
      }
    };
    uint32_t mask[8], edge = edges & 255;
    isBeyond(mask, edge);
    const uint32_t near = __byte_perm(weights, 0, 0x1010), next = __byte_perm(weights, 0, 0x3232);
#pragma unroll
    for (int i = 0; i < 8; i++) T[i] = (next & mask[i]) | (near & ~mask[i]);
#pragma unroll 1
    while (edge > farthest) {
      const uint32_t weight = tile.beyond[--edge];
      isBeyond(mask, edge);
#pragma unroll
      for (int i = 0; i < 8; i++) T[i] = (weight & mask[i]) | (T[i] & ~mask[i]);
    }
  };

  /// What times add to 32 keys, each key's bucket by itself.
  [[maybe_unused]] const auto search = [&](uint32_t (&T)[8], const auto& tile, int group) {
    const int32_t rowTimes[2] = {tables.rowTimes[localRow], tables.rowTimes[localRow + 8]};
    // Several lookups' loads at once, or each would wait for the one before; wider heads have no registers left for as many.
    constexpr int kAtOnce = Width == 64 ? 4 : 2;
#pragma unroll
    for (int part = 0; part < 8; part += kAtOnce) {
      int32_t seconds[kAtOnce][2];
      NearSegment segments[kAtOnce][2];
#pragma unroll
      for (int i = 0; i < kAtOnce; i += 2) {
        const int2 times = *reinterpret_cast<const int2*>(&tile.times[32 * group + (part + i) / 2 * 8 + 2 * quad]);
#pragma unroll
        for (int e = 0; e < 2; e++) {
          seconds[i + e][0] = max(rowTimes[e] - times.x, 1);
          seconds[i + e][1] = max(rowTimes[e] - times.y, 1);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; i++)
#pragma unroll
        for (int k = 0; k < 2; k++) segments[i][k] = tables.segments[nearSegmentOf(__float_as_uint(__int2float_rz(seconds[i][k])))];
#pragma unroll
      for (int i = 0; i < kAtOnce; i++)
        T[part + i] = __byte_perm(segments[i][0].weights, segments[i][1].weights,
                                  (seconds[i][0] >= segments[i][0].edge ? 0x32 : 0x10) + (seconds[i][1] >= segments[i][1].edge ? 0x7600 : 0x5400));
    }
  };

  /// The same of times further apart.
  [[maybe_unused]] const auto searchFar = [&](uint32_t (&T)[8], int t, int group) {
    const bool isOwn = t >= sharedTiles;
    const int token = (isOwn ? t - sharedTiles : t) * Keys, lastKey = (isOwn ? p.rows : p.keys) - 1;
    const int64_t* all = p.times + int64_t(user) * (p.keys + p.rows);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int64_t rowTime = __ldg(all + p.keys + min(r0 + i % 2 * 8, p.rows - 1));
      uint32_t halves[2];
#pragma unroll
      for (int k = 0; k < 2; k++) {
        const int64_t keyTime = __ldg(all + (isOwn ? p.keys : 0) + min(token + 32 * group + i / 2 * 8 + 2 * quad + k, lastKey));
        halves[k] = __half_as_ushort(__float2half_rn(halfTimeWeight(timeBucket(rowTime - keyTime))));
      }
      T[i] = halves[0] | halves[1] << 16;
    }
  };

  [[maybe_unused]] const auto addSearched = [&](const auto& tile, int t, int group) {
    uint32_t T[8];
    if (tile.isFar) {
      searchFar(T, t, group);
    } else {
      search(T, tile, group);
    }
#pragma unroll
    for (int g = 0; g < Keys / 32; g++) {
      if (g != group) continue;
#pragma unroll
      for (int i = 0; i < 8; i++) B[8 * g + i] = addHalves(B[8 * g + i], T[i]);
    }
  };

  /// The tile's bias into B, while its scores are computed.
  const auto addBias = [&](int t, int stage, uint32_t phase) {
    if constexpr (Bias && !kIsLate) {
      barrierWait(fullBias(stage), phase);
      const typename C::Tile& tile = biasTiles[stage];
      if constexpr (Causal) {
        const uint32_t* position = tile.position + localRow - 2 * quad + Keys;
        const int group0 = (own * 4 + warp) * (Keys / 32);
        const uint32_t withEdges = tile.withEdges >> group0 & ((1 << Keys / 32) - 1);
        // Eight rows further down is as far as eight keys before: pair j + 1, and for the row eight below pair j.
        uint32_t positions[Keys / 8 + 1];
#pragma unroll
        for (int j = 0; j <= Keys / 8; j++) positions[j] = position[8 - 8 * j];
        if (withEdges) {
          const uint2 keys[2] = {*reinterpret_cast<const uint2*>(tile.keys[localRow]),
                                 *reinterpret_cast<const uint2*>(tile.keys[localRow + 8])};
#pragma unroll
          for (int group = 0; group < Keys / 32; group++) {
            uint32_t T[8];
            timesOf(T, tile, group, group0 + group, keys);
#pragma unroll
            for (int i = 0; i < 8; i++) B[8 * group + i] = addHalves(positions[4 * group + i / 2 + 1 - i % 2], T[i]);
          }
        } else {
#pragma unroll
          for (int i = 0; i < Keys / 4; i++)
            B[i] = addHalves(positions[i / 2 + 1 - i % 2], __byte_perm(tile.weight[group0 + i / 8], 0, 0x1010));
        }
        uint32_t searched = tile.searched >> group0 & ((1 << Keys / 32) - 1);
        if (searched) barrierWait(fullTables, 0);
        for (; searched; searched &= searched - 1) addSearched(tile, t, __ffs(searched) - 1);
      } else {
#pragma unroll
        for (int j = 0; j < Keys / 8; j += 4) {
          const uint4 pairs = *reinterpret_cast<const uint4*>(&tile.pairs[quad * C::Tile::Stride + j]);
          B[j] = pairs.x;
          B[j + 1] = pairs.y;
          B[j + 2] = pairs.z;
          B[j + 3] = pairs.w;
        }
      }
      arriveTogether(emptyBias(stage), lane);
    }
  };

  /// The same into H with the tile's scores, 32 keys at a time.
  [[maybe_unused]] const auto addLateBias = [&](const auto& tile, int t) {
    const uint32_t* position = tile.position + localRow - 2 * quad + Keys;
    const int group0 = (own * 4 + warp) * (Keys / 32);
    const uint32_t withEdges = tile.withEdges >> group0, searched = tile.searched >> group0;
    if (searched & ((1 << Keys / 32) - 1)) barrierWait(fullTables, 0);
#pragma unroll
    for (int group = 0; group < Keys / 32; group++) {
      uint32_t T[8], positions[5];
#pragma unroll
      for (int j = 0; j < 5; j++) positions[j] = position[8 - 8 * (4 * group + j)];
      if (searched >> group & 1) {
        if (tile.isFar) {
          searchFar(T, t, group);
        } else {
          search(T, tile, group);
        }
      } else if (withEdges >> group & 1) {
        const uint2 keys[2] = {*reinterpret_cast<const uint2*>(tile.keys[localRow]),
                               *reinterpret_cast<const uint2*>(tile.keys[localRow + 8])};
        timesOf(T, tile, group, group0 + group, keys);
      } else {
        const uint32_t weight = __byte_perm(tile.weight[group0 + group], 0, 0x1010);
#pragma unroll
        for (int i = 0; i < 8; i++) T[i] = weight;
      }
#pragma unroll
      for (int i = 0; i < 8; i++) H[8 * group + i] = halfOf(8 * group + i, addHalves(positions[i / 2 + 1 - i % 2], T[i]));
    }
  };

  /// Without a bias S as weights, else S and B as H and its tangent; keys that a row does not see get none where `isMasked`.
  const auto weigh = [&](auto masked, int t) {
    constexpr bool isMasked = decltype(masked)::value;
    const bool isOwn = Causal && t >= sharedTiles;
    const int token = (isOwn ? t - sharedTiles : t) * Keys;
    const int lastKey = (isOwn ? p.rows : realKeys) - 1;
    // Counted from this thread's first column: 8j + parity must not be above.
    const int most0 = (isOwn ? min(lastKey, r0) : lastKey) - token - 2 * quad;
    const int most1 = (isOwn ? min(lastKey, r0 + 8) : lastKey) - token - 2 * quad;
    if constexpr (!Bias) {
#pragma unroll
      for (int j = 0; j < Keys / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float weight = siluOfHalf(S[4 * j + e] * p.halfAlpha);
          S[4 * j + e] = isMasked && 8 * j + (e & 1) > (e < 2 ? most0 : most1) ? 0.f : weight;
        }
    } else {
      [[maybe_unused]] const uint32_t seen[2] = {wholeHalf(max(0, min(Keys, most0 + 1))), wholeHalf(max(0, min(Keys, most1 + 1)))};
#pragma unroll
      for (int i = 0; i < Keys / 4; i++) {
        if constexpr (!kIsLate) H[i] = halfOf(i, B[Causal ? i : i / 2]);
        if constexpr (isMasked) H[i] &= halvesBelow(wholeHalves(i / 2 * 8), seen[i % 2]);
        tanhs[i] = tanhOfHalves(H[i]);
      }
    }
  };

  const auto weights = [&](int t, [[maybe_unused]] int stage, [[maybe_unused]] uint32_t phase) {
    if constexpr (kIsLate) {
      barrierWait(fullBias(stage), phase);
      addLateBias(biasTiles[stage], t);
      arriveTogether(emptyBias(stage), lane);
    }
    const bool isOwn = Causal && t >= sharedTiles;
    const int lastOfTile = (isOwn ? t - sharedTiles : t) * Keys + Keys - 1;
    const int mostOfAll = isOwn ? min(p.rows - 1, row0 + own * 64) : realKeys - 1;
    if (lastOfTile > mostOfAll) {
      weigh(std::true_type(), t);
    } else {
      weigh(std::false_type(), t);
    }
  };

  const auto takeWeights = [&]() {
#pragma unroll
    for (int i = 0; i < Keys / 4; i++) {
      if constexpr (Bias) P[i] = fmaHalves(H[i], tanhs[i], H[i]);
      if constexpr (!Bias) P[i] = packHalves(S[2 * i], S[2 * i + 1]);
    }
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
    addBias(first, stage, phase);
    productWait<0>();
    pin(S);
    if (lane == 0) barrierArrive(emptyK(stage));
    weights(first, stage, phase);
    takeWeights();
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
      addBias(t + 1, nextStage, nextPhase);
      productWait<1>();
      pin(S);
      if (lane == 0) barrierArrive(emptyK(nextStage));
      weights(t + 1, nextStage, nextPhase);
      productWait<0>();
      pin(sum);
      if (lane == 0) barrierArrive(emptyV(stage));
      takeWeights();
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
