// What the kernels decide on the host, checked without a GPU: exact time buckets, plans that a kernel can be launched with.
// Prints what is wrong and ends with 1; ops.test.ts builds and runs it.
#include <cstdio>
#include <cstring>
#include "bucket.h"
#include "plan.h"

namespace {

int faults = 0;

template <class... Values>
void expect(bool isTrue, const char* format, Values... values) {
  if (isTrue) return;
  faults++;
  if (faults <= 20) std::printf(format, values...), std::printf("\n");
}

/// A bucket's end is the first number of the next.
void checkEnds() {
  for (int bucket = 0; bucket < hstu::kBuckets - 1; bucket++) {
    const int64_t end = hstu::endOfBucket(bucket);
    expect(hstu::timeBucket(end) > bucket && (end <= 2 || hstu::timeBucket(end - 1) <= bucket), "bucket %d ends at %lld", bucket,
           static_cast<long long>(end));
  }
  expect(hstu::endOfBucket(hstu::kBuckets - 1) == INT64_MAX, "the last bucket ends");
}

int countEdges(int64_t seconds) {
  int bucket = 0;
  while (bucket < hstu::kBuckets - 1 && hstu::kEdges[bucket] <= seconds) bucket++;
  return bucket;
}

void checkBuckets() {
  const auto check = [](int64_t s) {
    expect(hstu::timeBucket(s) == countEdges(s), "bucket of %lld: expected %d, got %d", static_cast<long long>(s), countEdges(s),
           hstu::timeBucket(s));
  };
  for (int64_t s = -3; s < 200'000; s++) check(s);
  for (const int64_t edge : hstu::kEdges)
    for (int64_t s = edge - 2; s <= edge + 2; s++) check(s);
  for (int bit = 0; bit < 63; bit++)
    for (int64_t s = (int64_t(1) << bit) - 2; s <= (int64_t(1) << bit) + 2; s++) check(s);
  check(INT64_MAX);
  check(INT64_MIN);
  uint64_t random = 88172645463325252;
  for (int i = 0; i < 200'000; i++) {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    check(int64_t(random >> 1) >> (random & 63));
  }
}

/// Buckets looked up by the wider segments of numbers below 2^31.
void checkNearSegments() {
  const auto check = [&](int64_t s) {
    if (s < 1 || s > INT32_MAX - 1) return;
    // Rounded towards zero, as the kernels convert.
    const int shift = s < 1 << 24 ? 0 : 40 - __builtin_clzll(uint64_t(s));
    const float rounded = float(s >> shift << shift);
    uint32_t bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    const hstu::NearEdge edge = hstu::nearEdgeAt(hstu::nearSegmentOf(bits));
    const int bucket = edge.bucket + (s >= edge.end);
    expect(edge.end == hstu::nearEnd(edge.bucket), "end of bucket %d: %d", edge.bucket, edge.end);
    expect(bucket == hstu::timeBucket(s) && bucket < hstu::kNearBuckets, "bucket of %lld: %d", static_cast<long long>(s), bucket);
  };
  for (int64_t s = 1; s < 200'000; s++) check(s);
  for (const int64_t edge : hstu::kEdges)
    for (int64_t s = edge - 2; s <= edge + 2; s++) check(s);
  for (int bit = 0; bit < 31; bit++)
    for (int64_t s = (int64_t(1) << bit) - 2; s <= (int64_t(1) << bit) + 2; s++) check(s);
}

void checkPlans() {
  const auto slots = [](int warpgroups, int split) { return 132 * (warpgroups == 1 ? 2 : 1) / split; };
  for (int width : {64, 128, 256})
    for (int rows : {1, 63, 64, 65, 1000, 16'384})
      for (int keys : {0, 1, 127, 129, 2048, 16'384})
        for (int heads : {1, 8, 64})
          for (int mode = 0; mode < 4; mode++) {
            const hstu::AttentionShape shape{width, rows, keys, heads, (mode & 1) != 0, (mode & 2) != 0};
            const hstu::AttentionPlan plan = hstu::planAttention(shape, slots);
            const int tiles = keys == 0 ? 1 : (keys + hstu::keysOfTile(width) - 1) / hstu::keysOfTile(width);
            expect(plan.warpgroups >= 1 && plan.warpgroups <= hstu::mostWarpgroups(shape) && plan.split >= 1 &&
                       plan.split <= hstu::kMostSplits && plan.split <= tiles,
                   "width %d, %d rows, %d keys: no kernel has %d warpgroups and %d splits", width, rows, keys, plan.warpgroups,
                   plan.split);
            const hstu::AttentionPlan asked = hstu::planAttention(shape, slots, 2, 1);
            expect(asked.warpgroups == 2 && asked.split == 1, "a plan that is asked for is kept");
          }
  for (long rows : {1L, 64L, 256L, 2048L, 100'000L})
    for (int depth : {8, 64, 512, 4096})
      for (int width : {8, 64, 512, 4096}) {
        const hstu::LinearPlan plan = hstu::planLinear({{rows, width}, {}, {}}, depth, 132);
        expect(plan.tile >= 0 && plan.tile < hstu::kLinearTileCount && plan.split >= 1 && plan.split <= (depth + 63) / 64,
               "%ld x %d x %d: no kernel has tile %d and split %d", rows, depth, width, plan.tile, plan.split);
      }
  // Few rows must not leave most of the GPU idle, and many must not pay for sums over a cluster.
  expect(hstu::planAttention({64, 64, 16'384, 8, false, false}, slots).split > 1, "64 rows of 16,384 keys are not split");
  expect(hstu::planAttention({64, 16'384, 2048, 8, false, false}, slots).split == 1, "16,384 rows are split");
  expect(hstu::planLinear({{16'384, 2048}, {}, {}}, 512, 132).split == 1, "16,384 rows of a linear layer are split");
}

}  // namespace

int main() {
  checkBuckets();
  checkNearSegments();
  checkEnds();
  checkPlans();
  std::printf("%d faults\n", faults);
  return faults != 0;
}
