// Time buckets of the relative bias: bucket(s) = clamp(floor(ln(max(s, 1)) / 0.301), 0, 127) of whole seconds, exactly.
#pragma once
#include <cstdint>
#ifdef __CUDACC__
#define HSTU_BOTH __host__ __device__
#else
#define HSTU_BOTH
#endif

namespace hstu {

constexpr int kBuckets = 128;

/// Bucket b begins at kEdges[b - 1] = ceil(e^(0.301 b)) seconds.
constexpr int64_t kEdges[kBuckets - 1] = {
    2, 2, 3, 4, 5, 7, 9, 12, 16, 21, 28, 38, 51, 68, 92, 124, 167, 226, 305, 412, 557, 752, 1016,
    1372, 1854, 2505, 3385, 4574, 6180, 8350, 11283, 15245, 20600, 27834, 37610, 50818, 68666, 92782,
    125367, 169397, 228891, 309280, 417902, 564672, 762990, 1030960, 1393042, 1882291, 2543369,
    3436624, 4643598, 6274473, 8478127, 11455724, 15479081, 20915478, 28261189, 38186783, 51598337,
    69720155, 94206525, 127292737, 171999135, 232406837, 314030289, 424320660, 573346040, 774710524,
    1046796097, 1414440665, 1911205440, 2582438644, 3489415219, 4714930440, 6370858056, 8608362918,
    11631700390, 15716862225, 21236771058, 28695323438, 38773389087, 52390965538, 70791162047,
    95653679456, 129248145233, 174641301215, 235976957620, 318854269524, 430838867570, 582153502558,
    786611250865, 1062876470327, 1436168615607, 1940564449431, 2622108811928, 3543017921206,
    4787358912370, 6468724083690, 8740600409714, 11810380924256, 15958297031977, 21563000024645,
    29136127064885, 39369007066311, 53195770115076, 71878621509799, 97123064840915, 131233592491847,
    177324056098577, 239601921079808, 323752354013490, 437457205087951, 591096262037950,
    798694791013881, 1079203862655709, 1458230340644303, 1970374458392745, 2662388374508185,
    3597444042437672, 4860899995802064, 6568093482609850, 8874869269797386, 11991806262278896,
    16203440643505319, 21894240362561142, 29583702103771285, 39973774639893605};

/// Numbers whose leading bit and the three bits behind it are the same: at most one edge lies among them.
struct alignas(16) Segment {
  int64_t edge;    ///< the next bucket begins here
  int32_t bucket;  ///< of the segment's smallest number
  int32_t unused;
};

constexpr int kSegmentCount = 63 * 8;

struct Segments {
  Segment at[kSegmentCount];
};

constexpr Segments makeSegments() {
  Segments made{};
  for (int i = 0; i < kSegmentCount; i++) {
    const int exponent = i / 8;
    const uint64_t mantissa = 8 + i % 8;
    // Rounded up: below 8 some segments hold no number at all.
    const uint64_t start = exponent >= 3 ? mantissa << (exponent - 3)
                                         : (mantissa + (8 >> exponent) - 1) >> (3 - exponent);
    int bucket = 0;
    while (bucket < kBuckets - 1 && uint64_t(kEdges[bucket]) <= start) bucket++;
    // The last bucket has no end: its segments say that they are one below, and that everything is past their edge.
    made.at[i] = bucket < kBuckets - 1 ? Segment{kEdges[bucket], bucket, 0} : Segment{1, kBuckets - 2, 0};
  }
  return made;
}

inline constexpr Segments kHostSegments = makeSegments();

struct Ends {
  int64_t at[kBuckets];
};

constexpr Ends makeEnds() {
  Ends made{};
  for (int b = 0; b < kBuckets; b++) made.at[b] = b < kBuckets - 1 ? kEdges[b] : INT64_MAX;
  return made;
}

inline constexpr Ends kHostEnds = makeEnds();

/// Where the next bucket begins.
HSTU_BOTH inline int64_t endOfBucket(int bucket) {
#ifdef __CUDA_ARCH__
  static constexpr Ends kEnds = kHostEnds;
  return __ldg(reinterpret_cast<const long long*>(&kEnds.at[bucket]));
#else
  return kHostEnds.at[bucket];
#endif
}

HSTU_BOTH inline Segment segmentAt(int index) {
#ifdef __CUDA_ARCH__
  // In the function: nvcc names a file's own variables after its process, and no two libraries would be the same.
  static constexpr Segments kSegments = kHostSegments;
  const int4 packed = __ldg(reinterpret_cast<const int4*>(&kSegments.at[index]));
  return {int64_t(uint64_t(uint32_t(packed.y)) << 32 | uint32_t(packed.x)), packed.z, 0};
#else
  return kHostSegments.at[index];
#endif
}

/// Of a float's bits: its leading bit and the three behind it. Rounded towards zero a number keeps them.
HSTU_BOTH inline int segmentOf(uint32_t floatBits) { return int(floatBits >> 20) - (127 << 3); }

/// Two segments of 12 % lie within a bucket of 35 %, so one comparison decides.
HSTU_BOTH inline int timeBucket(int64_t seconds) {
  const int64_t s = seconds < 1 ? 1 : seconds;
#ifdef __CUDA_ARCH__
  const Segment segment = segmentAt(segmentOf(__float_as_uint(__ll2float_rz(s))));
#else
  const int exponent = 63 - __builtin_clzll(uint64_t(s));
  const uint64_t bits = exponent >= 3 ? uint64_t(s) >> (exponent - 3) : uint64_t(s) << (3 - exponent);
  const Segment segment = segmentAt(exponent * 8 + int(bits & 7));
#endif
  return segment.bucket + (s >= segment.edge);
}

/// Segments of numbers below 2^31, by the leading bit and two behind it: 25 % wide at most, still less than a bucket.
constexpr int kNearSegments = 31 * 4;

constexpr int countNearBuckets() {
  int count = 1;
  while (kEdges[count - 1] < INT32_MAX) count++;
  return count;
}

/// Buckets that begin below 2^31.
constexpr int kNearBuckets = countNearBuckets();

/// Such a segment with the weights of its two buckets: looked up without knowing the bucket.
struct alignas(8) NearSegment {
  int32_t edge;      ///< the upper half counts from here; INT32_MAX: nowhere
  uint32_t weights;  ///< halves: the bucket's of the segment's smallest number, and above it the next one's
};

HSTU_BOTH inline int nearSegmentOf(uint32_t floatBits) { return int(floatBits >> 21) - (127 << 2); }

/// Where the bucket behind `bucket` begins, of numbers below 2^31 - 1.
HSTU_BOTH inline int32_t nearEnd(int bucket) {
  const int64_t end = endOfBucket(bucket);
  return int32_t(end < INT32_MAX ? end : INT32_MAX);
}

struct alignas(8) NearEdge {
  int32_t bucket;  ///< of a segment's smallest number
  int32_t end;     ///< where the next one begins
};

struct NearEdges {
  NearEdge at[kNearSegments];
};

constexpr NearEdges makeNearEdges() {
  NearEdges made{};
  for (int i = 0; i < kNearSegments; i++) {
    const int bucket = kHostSegments.at[2 * i].bucket;
    made.at[i] = {bucket, int32_t(kEdges[bucket] < INT32_MAX ? kEdges[bucket] : INT32_MAX)};
  }
  return made;
}

inline constexpr NearEdges kHostNearEdges = makeNearEdges();

HSTU_BOTH inline NearEdge nearEdgeAt(int index) {
#ifdef __CUDA_ARCH__
  static constexpr NearEdges kNearEdges = kHostNearEdges;
  const int2 packed = __ldg(reinterpret_cast<const int2*>(&kNearEdges.at[index]));
  return {packed.x, packed.y};
#else
  return kHostNearEdges.at[index];
#endif
}

}  // namespace hstu
