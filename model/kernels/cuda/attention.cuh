// Fused HSTU attention for sm_90a: out = scale·(SiLU(alpha·Q·Kᵀ + bias)·V [+ SiLU(alpha·q·k + bias)·v of the row itself]),
// float16 in and out, float32 sums. One producer warp feeds K and V tiles by the copy engine; each consumer warpgroup has
// 64 rows of Q, scores and weights stay in its registers (the weights are the next product's A operand). The bias never
// exists as a matrix: the producer's other warps prepare each tile's times and positions (attention-bias.cuh), and the
// consumers add up the next tile's while the special function unit is busy with this one. Bias and SiLU are computed in pairs
// of halves. Keys may be split over a cluster of CTAs, which add up their partial sums through distributed shared memory:
// one launch, no workspace, no atomics, the same bits every time.
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
  [[maybe_unused]] const int helperThread = Bias && threadIdx.x >= 32 && threadIdx.x < 128 ? int(threadIdx.x) - 32 : -1;
  [[maybe_unused]] const KnownSegments segments(helperThread);
  __syncthreads();
  waitForBefore();
  const int realKeys = p.lengths ? min(p.keys, int(p.lengths[user])) : p.keys;
  const int ownKeys = Causal ? min(p.rows, row0 + C::Rows) : 0;
  const int sharedTiles = (realKeys + Keys - 1) / Keys, tiles = sharedTiles + (ownKeys + Keys - 1) / Keys;
  const int first = tiles * rank / splits, end = tiles * (rank + 1) / splits;
  const auto halfTimeWeight = [&](int bucket) { return halfWeight(p, bucket); };
  [[maybe_unused]] const BiasBlock biasBlock{user, row0, realKeys, sharedTiles, first, end};

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
        prepareBias<C, Keys, Stages, Causal>(p, biasBlock, tables, biasTiles, segments, {fullTables, fullBias(0), emptyBias(0)});
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
  // Known to be the same of all threads where there is one warpgroup: what is made of it then takes no registers.
  const int own = Warpgroups == 1 ? 0 : warpgroup - 1, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
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
  // Pairs of halves, of row r0 in even places and of the row eight below in odd ones: the weights that a product reads, and
  // those of the next tile. Nothing may be written into P while that product is under way, nor copied into it: the assembler
  // would make it wait for all. So H is no copy, but combined with what it cannot know to be 0. The bias, halved: of candidates
  // one pair for both rows. Wider heads have no registers for a causal bias beside the scores: theirs is added when those are there.
  uint32_t P[Keys / 4];
  constexpr bool kIsLate = Bias && Causal && Width > 64;
  [[maybe_unused]] uint32_t H[!Bias ? 1 : Keys / 4], B[!Bias || kIsLate ? 1 : Causal ? Keys / 4 : Keys / 8];
  [[maybe_unused]] const uint32_t nothing = p.rows >> 31;
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

  [[maybe_unused]] const auto keysOf = [](const auto& tile, int edge, int row) {
    return *reinterpret_cast<const uint32_t*>(tile.keys[edge][row]);
  };

  /// This thread's first word of BiasTile::position, and this warp's first of BiasTile::weight.
  [[maybe_unused]] const int position0 = localRow - 2 * quad + Keys + 8, group0 = (own * 4 + warp) * (Keys / 32);

  /// What a thread reads of a tile at once.
  struct Quick {
    uint32_t positions[Causal ? Keys / 8 + 1 : 1], weights[Keys / 32], keys[2], slow, searched;
  };

  /// Bits of those of 32 keys that are beyond an edge, by the numbers of keys of this thread's rows.
  [[maybe_unused]] const uint32_t toColumn = packHalves(-2.f * quad, -2.f * quad);
  [[maybe_unused]] const auto beyond = [&](uint32_t (&mask)[8], const uint32_t (&keys)[2], int group) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const uint32_t count = addHalves(__byte_perm(keys[e], kWholeHalf, 0x4040 + group * 0x101), toColumn);
#pragma unroll
      for (int i = e; i < 8; i += 2) mask[i] = halvesBelow(wholeHalves(i / 2 * 8), count);
    }
  };

  /// What times add to 32 keys that are not searched: the nearest bucket's weight, beyond its edge the next one's, and so on.
  [[maybe_unused]] const auto timesOf = [&](uint32_t (&T)[8], const auto& tile, const Quick& read, int group, uint32_t weights,
                                             bool hasSecond) {
    const uint32_t near = __byte_perm(weights, 0, 0x1010), next = __byte_perm(weights, 0, 0x3232);
#pragma unroll
    for (int i = 0; i < 8; i++) T[i] = near;
    if (near == next && !hasSecond) return;
    uint32_t mask[8];
    beyond(mask, read.keys, group);
#pragma unroll
    for (int i = 0; i < 8; i++) T[i] = (next & mask[i]) | (near & ~mask[i]);
    if (!hasSecond) return;
    const uint32_t weight = tile.beyond[group0 + group];
    beyond(mask, {keysOf(tile, 1, localRow), keysOf(tile, 1, localRow + 8)}, group);
#pragma unroll
    for (int i = 0; i < 8; i++) T[i] = (weight & mask[i]) | (T[i] & ~mask[i]);
  };

  /// What times add to 32 keys, each key's bucket by itself.
  [[maybe_unused]] const auto search = [&](uint32_t (&T)[8], const auto& tile, int group) {
    const int32_t rowTimes[2] = {tables.rowTimes[localRow], tables.rowTimes[localRow + 8]};
    // Several lookups' loads at once, or each would wait for the one before; wider heads have no registers left for as many.
    constexpr int kAtOnce = Width == 64 ? 8 : 2;
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

  /// Word i with its position. Eight rows further down is as far as eight keys before: pair j + 1, and for the row eight below pair j.
  [[maybe_unused]] const auto sumOf = [&](const uint32_t* positions, int i, uint32_t time) {
    return addHalves(positions[i / 2 + 1 - i % 2], time);
  };

  /// Times and positions of 32 keys, whatever it takes.
  [[maybe_unused]] const auto biasOf = [&](uint32_t (&T)[8], const auto& tile, const Quick& read, int t, int group, uint32_t weights) {
    uint32_t positions[5];
#pragma unroll
    for (int j = 0; j < 5; j++) positions[j] = tile.position[position0 - 8 * (4 * group + j)];
    if (!(read.searched >> (group0 + group) & 1)) {
      timesOf(T, tile, read, group, weights, read.slow >> (group0 + group) & 1);
    } else if (tile.isFar) {
      searchFar(T, t, group);
    } else {
      search(T, tile, group);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) T[i] = sumOf(positions, i, T[i]);
  };

  [[maybe_unused]] const auto readQuick = [&](const auto& tile) {
    Quick read{};
    if constexpr (Causal) {
      read.slow = tile.slow;
      read.searched = tile.searched;
#pragma unroll
      for (int group = 0; group < Keys / 32; group++) read.weights[group] = tile.weight[group0 + group];
#pragma unroll
      for (int e = 0; e < 2; e++) read.keys[e] = keysOf(tile, 0, localRow + 8 * e);
#pragma unroll
      for (int j = 0; j <= Keys / 8; j++) read.positions[j] = tile.position[position0 - 8 * j];
    }
    return read;
  };

  /// A tile's bias into B as far as that takes no branch: right but for the groups of keys in `slow`, which have a second edge or
  /// are searched. `use(i)`, which is mixed in, no longer needs what was in B.
  [[maybe_unused]] uint32_t slow = 0;
  [[maybe_unused]] const auto quickBias = [&](const auto& tile, const Quick& read, const auto& use) {
    if constexpr (Causal) slow = read.slow >> group0 & ((1 << Keys / 32) - 1);
#pragma unroll
    for (int group = 0; group < Keys / 32; group++) {
      if constexpr (Causal) {
        const uint32_t near = __byte_perm(read.weights[group], 0, 0x1010), next = __byte_perm(read.weights[group], 0, 0x3232);
        uint32_t mask[8];
        beyond(mask, read.keys, group);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          use(8 * group + i);
          B[8 * group + i] = sumOf(read.positions, 8 * group + i, (next & mask[i]) | (near & ~mask[i]));
        }
      } else {
        const uint4 pairs = *reinterpret_cast<const uint4*>(&tile.pairs[quad * C::Tile::Stride + 4 * group]);
        for (int i = 0; i < 8; i++) use(8 * group + i);
        B[4 * group] = pairs.x;
        B[4 * group + 1] = pairs.y;
        B[4 * group + 2] = pairs.z;
        B[4 * group + 3] = pairs.w;
      }
    }
  };

  /// The rest of it; nothing is read of the tile after that. No scores take registers then.
  [[maybe_unused]] const auto slowBias = [&](int t, int stage) {
    if constexpr (Causal && Bias) {
      const auto& tile = biasTiles[stage];
      if (slow) {
        Quick read{};
        read.slow = tile.slow;
        read.searched = tile.searched;
        for (int e = 0; e < 2; e++) read.keys[e] = keysOf(tile, 0, localRow + 8 * e);
        if (read.searched) barrierWait(fullTables, 0);
#pragma unroll 1
        for (; slow; slow &= slow - 1) {
          const int group = __ffs(slow) - 1;
          uint32_t T[8];
          biasOf(T, tile, read, t, group, tile.weight[group0 + group]);
#pragma unroll
          for (int g = 0; g < Keys / 32; g++) {
            if (g != group) continue;
#pragma unroll
            for (int i = 0; i < 8; i++) B[8 * g + i] = T[i];
          }
        }
      }
    }
    arriveTogether(emptyBias(stage), lane);
  };

  /// Of wider heads all of it into H with the tile's scores, 32 keys at a time.
  [[maybe_unused]] const auto addLateBias = [&](const auto& tile, int t) {
    const Quick read = readQuick(tile);
    if (read.searched) barrierWait(fullTables, 0);
#pragma unroll
    for (int group = 0; group < Keys / 32; group++) {
      uint32_t T[8];
      biasOf(T, tile, read, t, group, read.weights[group]);
#pragma unroll
      for (int i = 0; i < 8; i++) H[8 * group + i] = halfOf(8 * group + i, T[i]);
    }
  };

  /// S as weights, with a bias S and B as weights in H; keys that a row does not see get none where `isMasked`.
  /// Where not, B then becomes the next tile's, in stage `next`, for which the special function unit leaves time.
  const auto weigh = [&](auto masked, int t, [[maybe_unused]] int next) {
    constexpr bool isMasked = decltype(masked)::value;
    [[maybe_unused]] constexpr bool isFollowed = Bias && !kIsLate && !isMasked;
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
      [[maybe_unused]] Quick read{};
      if constexpr (isFollowed) read = readQuick(biasTiles[next]);
#pragma unroll
      for (int i = 0; i < Keys / 4; i++) {
        if constexpr (!kIsLate) H[i] = halfOf(i, B[Causal ? i : i / 2]);
        if constexpr (isMasked) H[i] &= halvesBelow(wholeHalves(i / 2 * 8), seen[i % 2]);
        if constexpr (!isFollowed) H[i] = fmaHalves(H[i], tanhOfHalves(H[i]), H[i]);
      }
      if constexpr (isFollowed) quickBias(biasTiles[next], read, [&](int i) { H[i] = fmaHalves(H[i], tanhOfHalves(H[i]), H[i]); });
    }
  };

  /// Of tile t in `stage`, as the next one is in `next`.
  const auto weights = [&](int t, [[maybe_unused]] int stage, [[maybe_unused]] uint32_t phase, [[maybe_unused]] int next,
                           [[maybe_unused]] uint32_t nextPhase) {
    if constexpr (kIsLate) {
      barrierWait(fullBias(stage), phase);
      addLateBias(biasTiles[stage], t);
      arriveTogether(emptyBias(stage), lane);
    }
    const bool isOwn = Causal && t >= sharedTiles;
    const int lastOfTile = (isOwn ? t - sharedTiles : t) * Keys + Keys - 1;
    const int mostOfAll = isOwn ? min(p.rows - 1, row0 + own * 64) : realKeys - 1;
    const bool isFollowed = Bias && !kIsLate && t + 1 < end;
    if (isFollowed) barrierWait(fullBias(next), nextPhase);
    if (lastOfTile > mostOfAll || (Bias && !kIsLate && !isFollowed)) {
      weigh(std::true_type(), t, next);
      if constexpr (Bias && !kIsLate)
        if (isFollowed) quickBias(biasTiles[next], readQuick(biasTiles[next]), [](int) {});
    } else {
      weigh(std::false_type(), t, next);
    }
  };

  const auto takeWeights = [&]() {
#pragma unroll
    for (int i = 0; i < Keys / 4; i++) {
      if constexpr (Bias) P[i] = H[i] ^ nothing;
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

  // The scores of a tile and the values of the one before are in flight together.
  int stage = 0;
  uint32_t phase = 0;
  if constexpr (Bias && !kIsLate) {
    if (first < end) {
      barrierWait(fullBias(0), 0);
      quickBias(biasTiles[0], readQuick(biasTiles[0]), [](int) {});
    }
  }
  constexpr bool kIsRolled = Causal && Bias && Width <= 128;
  const auto take = [&](auto first0, int t) {
    const bool isFirst = kIsRolled ? t == first : decltype(first0)::value;
    const int before = stage ? stage - 1 : Stages - 1, next = stage == Stages - 1 ? 0 : stage + 1;
    const uint32_t phaseBefore = phase ^ !stage, nextPhase = phase ^ !next;
    if constexpr (Bias && !kIsLate) slowBias(t, stage);
    barrierWait(fullK(stage), phase);
    pin(S);
    scores(stage);
    if (isFirst) {
      productWait<0>();
    } else {
      barrierWait(fullV(before), phaseBefore);
      pin(sum);
      addValues(before);
      productWait<1>();
    }
    pin(S);
    if (lane == 0) barrierArrive(emptyK(stage));
    weights(t, stage, phase, next, nextPhase);
    productWait<0>();
    pin(sum);
    if (lane == 0 && !isFirst) barrierArrive(emptyV(before));
    takeWeights();
    stage = next;
    phase = nextPhase;
  };
  if constexpr (kIsRolled) {
    // One copy: there is much of it, and a kernel's code comes to a multiprocessor no faster than its data.
#pragma unroll 1
    for (int t = first; t < end; t++) take(std::false_type(), t);
  } else {
    if (first < end) take(std::true_type(), first);
    for (int t = first + 1; t < end; t++) take(std::false_type(), t);
  }
  if (first < end) {
    stage = stage ? stage - 1 : Stages - 1;
    barrierWait(fullV(stage), phase ^ (stage == Stages - 1));
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
