// pos_w[min(i - j, P - 1)] + time_w[bucket(t_i - t_j)] of history tokens, with exact bucket edges.
#pragma once
#include <algorithm>
#include <cmath>

#include "tiles.h"

namespace peregrine {

constexpr int TIME_BUCKETS = 128;

/**
 * bucket(s) = clamp(floor(ln(max(s, 1)) / 0.301), 0, 127), by counting the whole seconds at which a
 * bucket begins. An octave of s has at most three of them: these and its first bucket are looked up.
 */
class TimeBuckets {
 public:
  static const TimeBuckets& get() {
    static const TimeBuckets buckets;
    return buckets;
  }

  int of(int64_t seconds) const {
    int bucket = 0;
    while (bucket + 1 < TIME_BUCKETS && seconds >= begins_[bucket + 1]) bucket++;
    return bucket;
  }

  /** table[bucket(now - times[i])] for the first `count` of 16 times. */
  __m512 look(const float* table, int64_t now, const int64_t* times, int64_t count) const {
    const __m512i t = _mm512_set1_epi64(now);
    const auto half = [&](int64_t from) {
      const __mmask8 m = static_cast<__mmask8>(lanes(count - from) & 0xff);
      return _mm512_cvtsepi64_epi32(_mm512_sub_epi64(t, _mm512_mask_loadu_epi64(t, m, times + from)));
    };
    const __m512i seconds = _mm512_max_epi32(
        _mm512_inserti64x4(_mm512_castsi256_si512(half(0)), half(8), 1), _mm512_set1_epi32(1));
    const __m512i octave = _mm512_sub_epi32(_mm512_set1_epi32(31), _mm512_lzcnt_epi32(seconds));
    const auto entry = [&](const int32_t* list) {
      return _mm512_permutex2var_epi32(_mm512_load_si512(list), octave, _mm512_load_si512(list + 16));
    };
    __m512i bucket = entry(base_);
    const __m512i one = _mm512_set1_epi32(1);
    for (const auto& begin : begin_) {
      bucket = _mm512_mask_add_epi32(bucket, _mm512_cmpge_epi32_mask(seconds, entry(begin)), bucket, one);
    }
    __m512 found = _mm512_i32gather_ps(bucket, table, 4);
    // 68 years and more do not fit 32 bits.
    const __mmask16 tooLong = _mm512_cmpeq_epi32_mask(seconds, _mm512_set1_epi32(INT32_MAX));
    if (__builtin_expect(tooLong != 0, false)) {
      alignas(64) float values[16];
      _mm512_store_ps(values, found);
      for (int i = 0; i < 16; i++) {
        if (tooLong >> i & 1) values[i] = table[of(now - times[i])];
      }
      found = _mm512_load_ps(values);
    }
    return found;
  }

 private:
  TimeBuckets() {
    for (int k = 0; k < TIME_BUCKETS; k++) begins_[k] = beginOf(k);
    for (int octave = 0; octave < 32; octave++) {
      const int first = octave == 31 ? 0 : of(int64_t{1} << octave);
      base_[octave] = first;
      for (int e = 0; e < 3; e++) {
        begin_[e][octave] =
            static_cast<int32_t>(std::min<int64_t>(begins_[first + 1 + e], INT32_MAX));
      }
    }
  }

  /** The least whole second of bucket k, by the definition itself. */
  static int64_t beginOf(int k) {
    const auto bucketOf = [](int64_t s) {
      return static_cast<int>(std::log(static_cast<double>(s)) / 0.301);
    };
    // From 2^53 on float64 has no single seconds any more, and the exponential is as good as any.
    const double guess = std::ceil(std::exp(0.301 * k));
    if (guess > 9e15) return static_cast<int64_t>(guess);
    int64_t s = std::max<int64_t>(1, static_cast<int64_t>(guess) - 8);
    while (bucketOf(s) < k) s++;
    return s;
  }

  int64_t begins_[TIME_BUCKETS];
  alignas(64) int32_t base_[32];
  alignas(64) int32_t begin_[3][32];
};

/** The two tables; the one over positions turned round, so that a row of it is read forwards. */
class RelativeBias {
 public:
  /** `reversed` has room for `tokens` values. */
  RelativeBias(const float* positions, int64_t positionCount, const float* times, int64_t tokens,
               float* reversed)
      : times_(times), tokens_(tokens), reversed_(reversed) {
    for (int64_t i = 0; i < tokens; i++) {
      reversed[i] = positions[std::min(tokens - 1 - i, positionCount - 1)];
    }
  }

  /** Row of token i against tokens 0 … i; `seconds` are all tokens' times. */
  void row(int64_t i, const int64_t* seconds, float* to) const {
    const TimeBuckets& buckets = TimeBuckets::get();
    const float* position = reversed_ + tokens_ - 1 - i;
    for (int64_t j = 0; j <= i; j += TILE) {
      const __mmask16 m = lanes(i + 1 - j);
      const __m512 time = buckets.look(times_, seconds[i], seconds + j, i + 1 - j);
      _mm512_mask_storeu_ps(to + j, m,
                            _mm512_add_ps(_mm512_maskz_loadu_ps(m, position + j), time));
    }
  }

 private:
  const float* times_;
  int64_t tokens_;
  float* reversed_;
};

}  // namespace peregrine
