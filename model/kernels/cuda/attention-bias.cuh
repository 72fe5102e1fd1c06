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

/// What threads 32 … 127 of a CTA do, a warp per stage: the loads of several tiles are under way.
template <class C, int Keys, int Stages, bool Causal>
__device__ __forceinline__ void prepareBias(const AttentionParams& p, const BiasBlock& block, BiasTables& tables,
                                            typename C::Tile* tiles, const KnownSegments& known, const BiasBarriers& barriers) {
  const int helper = threadIdx.x / 32 - 1, lane = threadIdx.x % 32, last = p.positions - 1;
  const int64_t* allTimes = p.times + int64_t(block.user) * (p.keys + (Causal ? p.rows : 0));
  const auto halfOf = [](float x) { return __half_as_ushort(__float2half_rn(x)); };
  int64_t zero = 0;
  bool isFarRow = false;
  // A lane has rows lane, lane + 32 …, and the range of a warp's sixteen: of the warp in whose row of BiasTile::weight it is.
  [[maybe_unused]] int32_t rowTime[C::Rows / 32], earliestRow = 0, latestRow = 0;
  constexpr int kGroups = Keys / 32;
  if constexpr (Causal) {
    zero = __ldg(allTimes + p.keys + block.row0) - kNear;
#pragma unroll
    for (int i = 0; i < C::Rows / 32; i++) {
      const int64_t since = __ldg(allTimes + p.keys + min(block.row0 + 32 * i + lane, p.rows - 1)) - zero;
      isFarRow |= !isNearTime(since);
      rowTime[i] = nearTime(since);
    }
  }
  // What lies behind the last key is masked; a copy of that key does not widen its neighbours' range.
  [[maybe_unused]] int64_t keyTimes[kGroups];
  constexpr int kWords = (C::Rows + Keys) / 32;
  [[maybe_unused]] uint16_t positions[kWords], beforeFirst = 0;
  [[maybe_unused]] const auto load = [&](int t) {
    const bool isOwn = t >= block.sharedTiles;
    const int token = (isOwn ? t - block.sharedTiles : t) * Keys, limit = isOwn ? p.rows : p.keys;
    // As far from the block's first row as this lane's first word of `position` says, and behind it of the next key.
    const int nearest = block.row0 + (isOwn ? 0 : p.keys) - token - Keys + lane;
#pragma unroll
    for (int i = 0; i < kGroups; i++) keyTimes[i] = __ldg(allTimes + (isOwn ? p.keys : 0) + min(token + 32 * i + lane, limit - 1));
    const auto position = [&](int x) { return __half_as_ushort(__ldg(p.posW + min(max(x, 0), last))); };
#pragma unroll
    for (int i = 0; i < kWords; i++) positions[i] = position(nearest + 32 * i);
    beforeFirst = position(nearest - 1);
  };
  {
    const int thread = threadIdx.x - 32;
#pragma unroll
    for (int i = 0; i < KnownSegments::kEach; i++) {
      const int segment = thread + 96 * i;
      const uint32_t near = halfOf(halfWeight(p, known.edges[i].bucket)), far = halfOf(halfWeight(p, known.edges[i].bucket + 1));
      if (segment >= kNearSegments) continue;
      tables.segments[segment] = NearSegment{known.edges[i].end, near | far << 16};
      tables.buckets[segment] = uint8_t(known.edges[i].bucket);
    }
    if (thread < kNearBuckets) {
      tables.begins[thread] = thread ? known.begin : 1;
      tables.weights[thread] = halfOf(halfWeight(p, thread));
    }
    if constexpr (Causal)
      if (helper == 0)
#pragma unroll
        for (int i = 0; i < C::Rows / 32; i++) tables.rowTimes[32 * i + lane] = rowTime[i];
    arriveTogether(barriers.tables, lane);
  }
  if constexpr (Causal) {
#pragma unroll
    for (int i = 0; i < C::Rows / 32; i++) {
      int32_t low = rowTime[i], high = rowTime[i];
#pragma unroll
      for (int other = 1; other < 16; other *= 2) {
        low = min(low, __shfl_xor_sync(~0u, low, other));
        high = max(high, __shfl_xor_sync(~0u, high, other));
      }
      const int warpOfRows = lane / kGroups;
      low = __shfl_sync(~0u, low, warpOfRows % 2 * 16);
      high = __shfl_sync(~0u, high, warpOfRows % 2 * 16);
      if (i == 0 || warpOfRows / 2 == i) {
        earliestRow = low;
        latestRow = high;
      }
    }
    isFarRow = __any_sync(~0u, isFarRow);
  }
  const auto segmentOfNear = [](int32_t seconds) { return nearSegmentOf(__float_as_uint(__int2float_rz(max(seconds, 1)))); };
  for (int t = block.first + helper; helper < Stages && t < block.end; t += Stages) {
    const int stage = helper;
    const uint32_t phase = (t - block.first) / Stages & 1;
    typename C::Tile& tile = tiles[stage];
    if constexpr (Causal) {
      load(t);
      barrierWait(barriers.tables, 0);
      barrierWait(barriers.empty + 8 * stage, phase ^ 1);
      // A position is the lower half of its word, and of the next one the upper half.
      auto* halves = reinterpret_cast<uint16_t*>(tile.position) + 2 * lane;
      const auto half = [](uint16_t x) { return __half_as_ushort(__hmul(__ushort_as_half(x), __ushort_as_half(0x3800))); };
      if (lane == 0) halves[1] = half(beforeFirst);
#pragma unroll
      for (int i = 0; i < kWords; i++) {
        const uint16_t position = half(positions[i]);
        halves[64 * i] = position;
        if (i < kWords - 1 || lane < 31) halves[64 * i + 3] = position;
      }
      bool isFar = isFarRow, isSorted = true;
      // Of the keys that the lane's word of BiasTile::weight stands for.
      int32_t earliest = 0, latest = 0, latestOf[kGroups];
#pragma unroll
      for (int i = 0; i < kGroups; i++) {
        const int64_t since = keyTimes[i] - zero;
        const int32_t time = nearTime(since);
        isFar |= !isNearTime(since);
        tile.times[32 * i + lane] = time;
        const int32_t low = __reduce_min_sync(~0u, time), high = __reduce_max_sync(~0u, time);
        latestOf[i] = high;
        const int32_t next = __shfl_down_sync(~0u, time, 1);
        isSorted &= lane == 31 || time <= next;
        if (i == 0 || lane % kGroups == i) {
          earliest = low;
          latest = high;
        }
      }
      // Groups among each other: every one ends before the next begins.
      const int32_t nextEarliest = __shfl_down_sync(~0u, earliest, 1);
      isSorted &= lane % kGroups == kGroups - 1 || latest <= nextEarliest;
      isFar = __any_sync(~0u, isFar);
      isSorted = __all_sync(~0u, isSorted);
      const bool isGroup = lane < C::Rows / 16 * kGroups;
      const auto bucketOf = [&](int32_t seconds) {
        const int segment = segmentOfNear(seconds);
        return int(tables.buckets[segment]) + (seconds >= tables.segments[segment].edge);
      };
      const int near = bucketOf(earliestRow - latest), far = bucketOf(latestRow - earliest);
      const int farthest = __reduce_max_sync(~0u, isGroup ? far : 0);
      const bool isSearched = isFar || (far > near && (!isSorted || farthest - near > kMostEdges));
      const bool hasEdges = isGroup && !isSearched && far > near;
      const uint32_t withEdges = __ballot_sync(~0u, hasEdges), searched = __ballot_sync(~0u, isGroup && isSearched);
      const int edges = __reduce_max_sync(~0u, hasEdges ? farthest - near : 0);
      if (isGroup) {
        tile.weight[lane] = isSearched ? 0 : tables.weights[near] | uint32_t(tables.weights[hasEdges ? near + 1 : near]) << 16;
        tile.edges[lane] = hasEdges ? uint32_t(farthest - near - 1) | uint32_t(farthest - far) << 8 : 0;
      }
      if (lane < kMostEdges) tile.beyond[lane] = twice(tables.weights[max(farthest - lane, 0)]);
      if (lane == 0) {
        tile.withEdges = withEdges;
        tile.searched = searched;
        tile.isFar = isFar;
      }
      __syncwarp();
      constexpr int kAtOnce = C::Rows == 64 ? 4 : 2;
      for (int edge = 0; edge < edges; edge += kAtOnce) {
        // Several edges and all of the lane's rows at once: a search waits for every load.
        int32_t latestBeyond[kAtOnce][C::Rows / 32];
        int keys[kAtOnce][C::Rows / 32];
#pragma unroll
        for (int e = 0; e < kAtOnce; e++) {
          const int32_t begins = tables.begins[max(farthest - edge - e, 1)];
#pragma unroll
          for (int i = 0; i < C::Rows / 32; i++) {
            latestBeyond[e][i] = rowTime[i] - begins;
            keys[e][i] = 0;
#pragma unroll
            for (int group = 0; group < kGroups - 1; group++) keys[e][i] += latestOf[group] <= latestBeyond[e][i] ? 32 : 0;
          }
        }
#pragma unroll
        for (int step = 16; step; step /= 2)
#pragma unroll
          for (int e = 0; e < kAtOnce; e++)
#pragma unroll
            for (int i = 0; i < C::Rows / 32; i++)
              if (tile.times[keys[e][i] + step - 1] <= latestBeyond[e][i]) keys[e][i] += step;
#pragma unroll
        for (int e = 0; e < kAtOnce; e++)
#pragma unroll
          for (int i = 0; i < C::Rows / 32; i++)
            tile.keys[32 * i + lane][edge + e] = uint8_t(keys[e][i] + (tile.times[keys[e][i]] <= latestBeyond[e][i]));
      }
    } else {
      const int64_t now = __ldg(p.queryTimes + block.user);
      int64_t since[kGroups];
      float position[kGroups];
#pragma unroll
      for (int i = 0; i < kGroups; i++) {
        const int key = t * Keys + lane + 32 * i;
        since[i] = now - __ldg(allTimes + min(key, p.keys - 1));
        position[i] = __half2float(__ldg(p.posW + min(max(block.realKeys - key, 0), last)));
      }
      barrierWait(barriers.tables, 0);
      barrierWait(barriers.empty + 8 * stage, phase ^ 1);
      auto* halves = reinterpret_cast<uint16_t*>(tile.pairs);
#pragma unroll
      for (int i = 0; i < kGroups; i++) {
        const NearSegment segment = tables.segments[segmentOfNear(nearTime(since[i]))];
        const uint16_t near = uint16_t(since[i] >= segment.edge ? segment.weights >> 16 : segment.weights);
        const float weight = since[i] < INT32_MAX ? __half2float(__ushort_as_half(near)) : halfWeight(p, timeBucket(since[i]));
        const int key = lane + 32 * i;
        halves[(key / 2 % 4 * C::Tile::Stride + key / 8) * 2 + key % 2] = halfOf(fmaf(0.5f, position[i], weight));
      }
    }
    arriveTogether(barriers.full + 8 * stage, lane);
  }
}

}  // namespace hstu
