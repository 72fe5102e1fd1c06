// One block of queries of one head against packed keys and values.
#pragma once
#include "pack.h"

namespace peregrine {

/** The widest head: what a block's buffers on the stack hold. */
constexpr int64_t MAX_HEAD = 1024;
/** Keys whose weights lie in the first-level cache between the two products. */
constexpr int64_t CHUNK = 512;

/** Keys and values of one head, in blocks of BLOCK keys; `dqk` and `dv` padded to DEPTH and BLOCK. */
struct Packed {
  uint32_t* keys;
  uint32_t* values;
  int64_t dqk, dv;
  /** The values of block `tailBlock`, where not all of those at `values` are this history's: the others are 0 here. */
  const uint32_t* tail = nullptr;
  int64_t tailBlock = -1;

  int64_t keyBlock() const { return roundUp<int64_t>(dqk, DEPTH) * BLOCK / 2; }
  int64_t valueBlock() const { return roundUp<int64_t>(dv, BLOCK) * BLOCK / 2; }

  /** Packs block `b` of the `n` keys. */
  void fill(int64_t b, int64_t n, const Rows& k, const Rows& v) const {
    packColumns(k, b * BLOCK, n, dqk, keys + b * keyBlock());
    for (int64_t c = 0; c < dv; c += BLOCK) {
      packRows(v, b * BLOCK, n, c, dv, values + b * valueBlock() + c / BLOCK * 2 * TILE_WORDS);
    }
  }
};

/** A candidate's own key and value: a term that no tile product has. */
struct SelfTerm {
  const float* k = nullptr;
  const float* v = nullptr;
  int64_t stride = 0;
  float bias = 0;
};

struct Queries {
  const float* q;
  int64_t stride;
  /** BLOCK at most. */
  int64_t rows;
  float alpha, scale;
  /** Keys that the first row sees, and whether each later row sees one more; else all see as many. */
  int64_t visible;
  bool causal;
  /** bias[row · biasStride + key], or null; a stride of 0 is one row for all. */
  const float* bias;
  int64_t biasStride;
  SelfTerm self;
  float* out;
  int64_t outStride;
};

/** SiLU(alpha·s + bias) of one block of keys as bf16 tiles of A; invisible keys weigh exactly 0. */
template <bool TWO_ROWS>
inline void weigh(const Queries& x, const float* scores, int64_t key, int64_t end, uint32_t* to) {
  const __m512 alpha = _mm512_set1_ps(x.alpha);
  const bool masked = key + BLOCK > x.visible;
  __m512 low = _mm512_setzero_ps(), high = low;
  const auto loadBias = [&](const float* row) {
    low = _mm512_maskz_loadu_ps(lanes(end - key), row + key);
    high = _mm512_maskz_loadu_ps(lanes(end - key - TILE), row + key + TILE);
  };
  if (x.bias != nullptr && x.biasStride == 0) loadBias(x.bias);
  const int64_t rows = TWO_ROWS ? x.rows : std::min<int64_t>(x.rows, TILE);
  for (int64_t i = 0; i < rows; i++) {
    const float* s = scores + i / TILE * 2 * TILE_WORDS + i % TILE * TILE;
    if (x.biasStride != 0) loadBias(x.bias + i * x.biasStride);
    __m512 a = silu<false>(_mm512_fmadd_ps(_mm512_load_ps(s), alpha, low));
    __m512 b = silu<false>(_mm512_fmadd_ps(_mm512_load_ps(s + TILE_WORDS), alpha, high));
    if (masked) {
      const int64_t seen = std::min(x.visible + (x.causal ? i : 0), end) - key;
      a = _mm512_maskz_mov_ps(lanes(seen), a);
      b = _mm512_maskz_mov_ps(lanes(seen - TILE), b);
    }
    _mm512_store_si512(to + i / TILE * TILE_WORDS + i % TILE * TILE, toBf16(a, b));
  }
}

/** SiLU(alpha·q·k + bias) of each row with its own key, in float32. */
inline void weighSelf(const Queries& x, int64_t dqk, float (&to)[BLOCK]) {
  for (int64_t i = 0; i < x.rows; i++) {
    __m512 dot = _mm512_setzero_ps();
    for (int64_t c = 0; c < dqk; c += TILE) {
      const __mmask16 m = lanes(dqk - c);
      dot = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, x.q + i * x.stride + c),
                            _mm512_maskz_loadu_ps(m, x.self.k + i * x.self.stride + c), dot);
    }
    to[i] = x.alpha * _mm512_reduce_add_ps(dot) + x.self.bias;
  }
  for (int64_t i = 0; i < x.rows; i += TILE) {
    const __mmask16 m = lanes(x.rows - i);
    _mm512_mask_storeu_ps(to + i, m, silu<true>(_mm512_maskz_loadu_ps(m, to + i)));
  }
}

/** scale · SiLU(alpha·q·Kᵀ + bias)·V, and the self term, for one block of queries. */
template <bool TWO_ROWS>
inline void attendRows(const Queries& x, const Packed& packed) {
  alignas(64) uint32_t q[BLOCK * MAX_HEAD / 2];
  alignas(64) uint32_t weights[BLOCK * CHUNK / 2];
  alignas(64) float scores[2][4 * TILE_WORDS];
  alignas(64) float sums[BLOCK * MAX_HEAD];
  const int64_t dqk = packed.dqk, dv = packed.dv;
  const int64_t end = x.causal ? x.visible + x.rows - 1 : x.visible;
  packA({x.q, x.stride, x.rows}, 0, x.rows, dqk, q);
  const auto score = [&](int64_t block) {
    zeroSums();
    multiply<TWO_ROWS>(q, 2 * TILE_WORDS, packed.keys + block * packed.keyBlock(), 2 * TILE_WORDS,
                       roundUp<int64_t>(dqk, DEPTH) / DEPTH);
    storeSums<TWO_ROWS>(scores[block & 1]);
  };
  const int64_t blocks = roundUp<int64_t>(end, BLOCK) / BLOCK;
  constexpr int64_t STEP = CHUNK / BLOCK;
  for (int64_t start = 0; start < blocks; start += STEP) {
    const int64_t stop = std::min(start + STEP, blocks);
    score(start);
    for (int64_t block = start; block < stop; block++) {
      // The next product is under way while this block is weighed.
      if (block + 1 < stop) score(block + 1);
      weigh<TWO_ROWS>(x, scores[block & 1], block * BLOCK, end,
                      weights + (block - start) * 2 * TILE_WORDS);
    }
    for (int64_t c = 0; c < dv; c += BLOCK) {
      float* sum = sums + c / BLOCK * 4 * TILE_WORDS;
      if (start == 0) zeroSums();
      else loadSums<TWO_ROWS>(sum);
      const int64_t column = c / BLOCK * 2 * TILE_WORDS;
      const int64_t whole = stop - 1 == packed.tailBlock ? stop - 1 : stop;
      multiply<TWO_ROWS>(weights, 2 * TILE_WORDS, packed.values + start * packed.valueBlock() + column,
                         packed.valueBlock(), whole - start);
      if (whole < stop) {
        multiply<TWO_ROWS>(weights + (whole - start) * 2 * TILE_WORDS, 0, packed.tail + column, 0, 1);
      }
      storeSums<TWO_ROWS>(sum);
    }
  }
  float own[BLOCK];
  if (x.self.k != nullptr) weighSelf(x, dqk, own);
  const __m512 scale = _mm512_set1_ps(x.scale);
  for (int64_t i = 0; i < x.rows; i++) {
    for (int64_t c = 0; c < dv; c += TILE) {
      const __mmask16 m = lanes(dv - c);
      const float* sum = sums + c / BLOCK * 4 * TILE_WORDS + i / TILE * 2 * TILE_WORDS +
                         c % BLOCK / TILE * TILE_WORDS + i % TILE * TILE;
      __m512 a = blocks == 0 ? _mm512_setzero_ps() : _mm512_load_ps(sum);
      if (x.self.k != nullptr) {
        a = _mm512_fmadd_ps(_mm512_set1_ps(own[i]),
                            _mm512_maskz_loadu_ps(m, x.self.v + i * x.self.stride + c), a);
      }
      _mm512_mask_storeu_ps(x.out + i * x.outStride + c, m, _mm512_mul_ps(a, scale));
    }
  }
}

inline void attend(const Queries& x, const Packed& packed) {
  const TileScope scope;
  if (x.rows > TILE) attendRows<true>(x, packed);
  else attendRows<false>(x, packed);
}

}  // namespace peregrine
