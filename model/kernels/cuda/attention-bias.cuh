// The relative bias of an attention, prepared by the producer's warps tile after tile.
#pragma once
#include "attention-config.cuh"
#include "hopper.cuh"

namespace hstu {

/// A block's rows and tiles of keys: `first` … `end` of those that every row sees, and behind them of the rows' own tokens.
struct BiasBlock {
  int user, row0, realKeys, sharedTiles, first, end;
};

/// Addresses; a barrier per stage behind `full` and `empty`.
struct BiasBarriers {
  uint32_t tables, full, empty;
};

__device__ __forceinline__ float halfWeight(const AttentionParams& p, int bucket) {
  return 0.5f * __half2float(__ldg(p.timeW + bucket));
}

/// A thread's part of BiasTables, of 96 threads: what no weights are needed for, so that it is known before they are.
struct KnownSegments {
  static constexpr int kEach = (kNearSegments + 95) / 96;
  NearEdge edges[kEach];
  int begin;

  /// Nothing where `thread` is below 0.
  __device__ __forceinline__ explicit KnownSegments(int thread) {
    if (thread < 0) return;
#pragma unroll
    for (int i = 0; i < kEach; i++) edges[i] = nearEdgeAt(min(thread + 96 * i, kNearSegments - 1));
    begin = nearEnd(max(thread - 1, 0));
  }
};

/// What one of those threads reads of device memory: all that the tables and its warp's first tile need is under way together.
template <class C, int Keys, bool Causal>
struct BiasReads {
  static constexpr int kGroups = Keys / 32, kWords = Causal ? (C::Rows + Keys) / 32 : kGroups;
  __half near[KnownSegments::kEach], next[KnownSegments::kEach], own;  ///< weights of its segments' buckets, and of its own
  int64_t row0Time, rowTimes[Causal ? C::Rows / 32 : 1];                    ///< candidates: their own time
  int64_t keyTimes[kGroups];
  __half positions[kWords], beforeFirst;

  __device__ __forceinline__ BiasReads(const AttentionParams& p, const BiasBlock& block, const KnownSegments& known, int thread) {
    const int lane = thread % 32, t = block.first + thread / 32;
#pragma unroll
    for (int i = 0; i < KnownSegments::kEach; i++) {
      near[i] = __ldg(p.timeW + known.edges[i].bucket);
      next[i] = __ldg(p.timeW + known.edges[i].bucket + 1);
    }
    own = __ldg(p.timeW + min(thread, kNearBuckets - 1));
    if constexpr (Causal) {
      const int64_t* newTimes = timesOf(p, block) + p.keys;
      row0Time = __ldg(newTimes + block.row0);
#pragma unroll
      for (int i = 0; i < C::Rows / 32; i++) rowTimes[i] = __ldg(newTimes + min(block.row0 + 32 * i + lane, p.rows - 1));
    } else {
      rowTimes[0] = __ldg(p.queryTimes + block.user);
    }
    if (t < block.end) readTile(p, block, t, lane);
  }

  __device__ __forceinline__ static const int64_t* timesOf(const AttentionParams& p, const BiasBlock& block) {
    return p.times + int64_t(block.user) * (p.keys + (Causal ? p.rows : 0));
  }

  __device__ __forceinline__ void readTile(const AttentionParams& p, const BiasBlock& block, int t, int lane) {
    const bool isOwn = Causal && t >= block.sharedTiles;
    const int token = (isOwn ? t - block.sharedTiles : t) * Keys, lastKey = (isOwn ? p.rows : p.keys) - 1;
    // What lies behind the last key is masked; a copy of that key does not widen its neighbours' range.
    const int64_t* times = timesOf(p, block) + (isOwn ? p.keys : 0);
#pragma unroll
    for (int i = 0; i < kGroups; i++) keyTimes[i] = __ldg(times + min(token + 32 * i + lane, lastKey));
    // Causal: as far from the block's first row as this lane's first word of `position` says, and behind it of the next key.
    const int nearest = Causal ? block.row0 + (isOwn ? 0 : p.keys) - token - Keys + lane : block.realKeys - token - lane;
    const auto position = [&](int x) { return __ldg(p.posW + min(max(x, 0), p.positions - 1)); };
#pragma unroll
    for (int i = 0; i < kWords; i++) positions[i] = position(Causal ? nearest + 32 * i : nearest - 32 * i);
    if constexpr (Causal) beforeFirst = position(nearest - 1);
  }
};

/// How many of 32 keys in order of their times are no later than `time`; four by four by two, as each step waits for its loads.
__device__ __forceinline__ int countUntil(const int32_t* times, int32_t time) {
  int count = 8 * ((times[7] <= time) + (times[15] <= time) + (times[23] <= time));
  count += 2 * ((times[count + 1] <= time) + (times[count + 3] <= time) + (times[count + 5] <= time));
  return count + (times[count] <= time) + (times[count + 1] <= time);
}

/// What threads 32 … 127 of a CTA do, a warp per stage: the loads of several tiles are under way.
template <class C, int Keys, int Stages, bool Causal>
__device__ __forceinline__ void prepareBias(const AttentionParams& p, const BiasBlock& block, BiasTables& tables,
                                            typename C::Tile* tiles, const KnownSegments& known, const BiasBarriers& barriers) {
  const int thread = threadIdx.x - 32, helper = thread / 32, lane = thread % 32;
  BiasReads<C, Keys, Causal> reads(p, block, known, thread);
  constexpr int kGroups = Keys / 32;
  const auto halved = [](__half x) { return __half_as_ushort(__hmul(x, __ushort_as_half(0x3800))); };
#pragma unroll
  for (int i = 0; i < KnownSegments::kEach; i++) {
    const int segment = thread + 96 * i;
    if (segment >= kNearSegments) continue;
    tables.segments[segment] = NearSegment{known.edges[i].end, halved(reads.near[i]) | uint32_t(halved(reads.next[i])) << 16};
    tables.buckets[segment] = uint8_t(known.edges[i].bucket);
  }
  if (thread < kNearBuckets) {
    tables.begins[thread] = thread ? known.begin : 1;
    tables.weights[thread] = halved(reads.own);
  }
  // Of the rows of a warp: of the one in whose row of BiasTile::weight the lane is.
  bool isFarRow = false;
  [[maybe_unused]] int32_t earliestRow = 0, latestRow = 0;
  if constexpr (Causal) {
    const int warpOfRows = lane / kGroups, lane0 = warpOfRows % 2 * 16;
    int32_t rowTime[C::Rows / 32];
    bool isSorted = true;
#pragma unroll
    for (int i = 0; i < C::Rows / 32; i++) {
      const int64_t since = reads.rowTimes[i] - reads.row0Time + kNear;
      isFarRow |= !isNearTime(since);
      rowTime[i] = nearTime(since);
      if (helper == 0) tables.rowTimes[32 * i + lane] = rowTime[i];
      const int32_t next = __shfl_down_sync(~0u, rowTime[i], 1);
      isSorted &= lane % 16 == 15 || rowTime[i] <= next;
    }
    arriveTogether(barriers.tables, lane);
    isSorted = __all_sync(~0u, isSorted);
#pragma unroll
    for (int i = 0; i < C::Rows / 32; i++) {
      int32_t low = rowTime[i], high = rowTime[i];
      if (!isSorted)
#pragma unroll
        for (int other = 1; other < 16; other *= 2) {
          low = min(low, __shfl_xor_sync(~0u, low, other));
          high = max(high, __shfl_xor_sync(~0u, high, other));
        }
      low = __shfl_sync(~0u, low, lane0);
      high = __shfl_sync(~0u, high, lane0 + 15);
      if (i == 0 || warpOfRows / 2 == i) {
        earliestRow = low;
        latestRow = high;
      }
    }
    isFarRow = __any_sync(~0u, isFarRow);
  } else {
    arriveTogether(barriers.tables, lane);
  }
  const auto segmentOfNear = [](int32_t seconds) { return nearSegmentOf(__float_as_uint(__int2float_rz(max(seconds, 1)))); };
  for (int t = block.first + helper; helper < Stages && t < block.end; t += Stages) {
    const int stage = helper;
    const uint32_t phase = (t - block.first) / Stages & 1;
    typename C::Tile& tile = tiles[stage];
    barrierWait(barriers.tables, 0);
    barrierWait(barriers.empty + 8 * stage, phase ^ 1);
    if constexpr (Causal) {
      // A position is the lower half of its word, and of the next one the upper half.
      auto* halves = reinterpret_cast<uint16_t*>(tile.position) + 2 * lane;
      constexpr int kWords = BiasReads<C, Keys, Causal>::kWords;
      if (lane == 0) halves[1] = halved(reads.beforeFirst);
#pragma unroll
      for (int i = 0; i < kWords; i++) {
        const uint16_t position = halved(reads.positions[i]);
        halves[64 * i] = position;
        if (i < kWords - 1 || lane < 31) halves[64 * i + 3] = position;
      }
      bool isFar = isFarRow, isSorted = true;
      int32_t time[kGroups];
#pragma unroll
      for (int i = 0; i < kGroups; i++) {
        const int64_t since = reads.keyTimes[i] - reads.row0Time + kNear;
        time[i] = nearTime(since);
        isFar |= !isNearTime(since);
        tile.times[32 * i + lane] = time[i];
        const int32_t next = __shfl_down_sync(~0u, time[i], 1);
        isSorted &= lane == 31 || time[i] <= next;
      }
      isSorted = __all_sync(~0u, isSorted);
      // Of the keys that the lane's word of BiasTile::weight stands for.
      int32_t earliest = 0, latest = 0;
#pragma unroll
      for (int i = 0; i < kGroups; i++) {
        const int32_t low = isSorted ? __shfl_sync(~0u, time[i], 0) : __reduce_min_sync(~0u, time[i]);
        const int32_t high = isSorted ? __shfl_sync(~0u, time[i], 31) : __reduce_max_sync(~0u, time[i]);
        if (i == 0 || lane % kGroups == i) {
          earliest = low;
          latest = high;
        }
      }
      isFar = __any_sync(~0u, isFar);
      const bool isHere = lane < C::Rows / 16 * kGroups;
      const auto bucketOf = [&](int32_t seconds) {
        const int segment = segmentOfNear(seconds);
        return int(tables.buckets[segment]) + (seconds >= tables.segments[segment].edge);
      };
      const int near = bucketOf(earliestRow - latest), edges = bucketOf(latestRow - earliest) - near;
      const bool isSearched = isFar || (edges > 0 && (!isSorted || edges > kMostEdges));
      const bool hasEdges = isHere && !isSearched && edges > 0;
      const uint32_t searched = __ballot_sync(~0u, isHere && isSearched), withEdges = __ballot_sync(~0u, hasEdges);
      const uint32_t second = __ballot_sync(~0u, hasEdges && edges > 1);
      if (isHere) {
        tile.weight[lane] = isSearched ? 0 : tables.weights[near] | uint32_t(tables.weights[hasEdges ? near + 1 : near]) << 16;
        if (hasEdges && edges > 1) tile.beyond[lane] = twice(tables.weights[near + 2]);
      }
      if (lane == 0) {
        tile.slow = second | searched;
        tile.searched = searched;
        tile.isFar = isFar;
      }
      __syncwarp();
      // A half of the warp each has sixteen rows and 32 keys.
      const auto count = [&](uint32_t todo, int edge, int32_t begins) {
        while (todo) {
          const int low = __ffs(todo) - 1;
          todo &= todo - 1;
          const int high = todo ? __ffs(todo) - 1 : low;
          todo &= todo - 1;
          const int at = lane < 16 ? low : high, row = at / kGroups * 16 + lane % 16, group = at % kGroups;
          const int32_t latest = tables.rowTimes[row] - __shfl_sync(~0u, begins, at);
          tile.keys[edge][row][group] = uint8_t(countUntil(tile.times + 32 * group, latest));
        }
      };
      count(withEdges, 0, tables.begins[min(near + 1, kNearBuckets - 1)]);
      count(second, 1, tables.begins[min(near + 2, kNearBuckets - 1)]);
    } else {
      auto* halves = reinterpret_cast<uint16_t*>(tile.pairs);
#pragma unroll
      for (int i = 0; i < kGroups; i++) {
        const int64_t since = reads.rowTimes[0] - reads.keyTimes[i];
        const NearSegment segment = tables.segments[segmentOfNear(nearTime(since))];
        const uint16_t near = uint16_t(since >= segment.edge ? segment.weights >> 16 : segment.weights);
        const float weight = since < INT32_MAX ? __half2float(__ushort_as_half(near)) : halfWeight(p, timeBucket(since));
        const int key = lane + 32 * i;
        const float bias = fmaf(0.5f, __half2float(reads.positions[i]), weight);
        halves[(key / 2 % 4 * C::Tile::Stride + key / 8) * 2 + key % 2] = __half_as_ushort(__float2half_rn(bias));
      }
    }
    arriveTogether(barriers.full + 8 * stage, lane);
    if (t + Stages < block.end) reads.readTile(p, block, t + Stages, lane);
  }
}

}  // namespace hstu
