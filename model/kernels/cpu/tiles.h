// AMX tiles of bfloat16 and the float32 arithmetic beside them.
//
// A tile is 16 rows of 64 bytes. Products are C (16 x 16 float32) += A (16 x 32) · B (32 x 16); B holds
// pairs of consecutive rows: B[p][c] = (b[2p][c], b[2p+1][c]). Tiles 0-3 are sums, 4-5 A, 6-7 B.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace peregrine {

constexpr int TILE = 16;           // rows of a tile, columns of a sum
constexpr int DEPTH = 32;          // bf16 values of a tile's row
constexpr int TILE_WORDS = 256;    // 1 KiB as pairs of bf16, or as float32
constexpr int BLOCK = 2 * TILE;    // rows or columns of a block: two tiles

template <class T>
constexpr T roundUp(T x, T step) {
  return (x + step - 1) / step * step;
}

/** All eight tiles at their full size, for one thread; released so that switches stay cheap. */
class TileScope {
 public:
  TileScope() {
    struct alignas(64) Config {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t rowBytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
    };
    static const Config config;
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

/** `steps` products of A (BLOCK rows, or TILE of them) and B (BLOCK columns) onto tiles 0-3. */
template <bool TWO_ROWS>
inline void multiply(const uint32_t* a, int64_t aStep, const uint32_t* b, int64_t bStep, int64_t steps) {
  for (int64_t s = 0; s < steps; s++) {
    _tile_loadd(4, a + s * aStep, 64);
    _tile_loadd(6, b + s * bStep, 64);
    _tile_loadd(7, b + s * bStep + TILE_WORDS, 64);
    if constexpr (TWO_ROWS) _tile_loadd(5, a + s * aStep + TILE_WORDS, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (TWO_ROWS) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

inline void zeroSums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

/** Sums to or from four tiles in a row: rows 0-15 left and right, rows 16-31 left and right. */
template <bool TWO_ROWS>
inline void storeSums(float* to) {
  _tile_stored(0, to, 64);
  _tile_stored(1, to + TILE_WORDS, 64);
  if constexpr (TWO_ROWS) {
    _tile_stored(2, to + 2 * TILE_WORDS, 64);
    _tile_stored(3, to + 3 * TILE_WORDS, 64);
  }
}
template <bool TWO_ROWS>
inline void loadSums(const float* from) {
  _tile_loadd(0, from, 64);
  _tile_loadd(1, from + TILE_WORDS, 64);
  if constexpr (TWO_ROWS) {
    _tile_loadd(2, from + 2 * TILE_WORDS, 64);
    _tile_loadd(3, from + 3 * TILE_WORDS, 64);
  }
}

/** The first `count` of 16 lanes. */
inline __mmask16 lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

/** Two vectors of float32 as 32 bf16, rounded to nearest even. */
inline __m512i toBf16(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

/** 32 values of a row as bf16; those behind `count` are 0. */
inline __m512i loadBf16(const float* from, int64_t count) {
  return toBf16(_mm512_maskz_loadu_ps(lanes(count), from),
                _mm512_maskz_loadu_ps(lanes(count - 16), from + 16));
}

/** The same of values that are bf16 already. */
inline __m512i loadBf16(const uint16_t* from, int64_t count) {
  const __mmask32 first = count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1;
  return _mm512_maskz_loadu_epi16(first, from);
}

/**
 * 2^f on [0, 1) by a polynomial of degree 3, largest relative error 8e-5; of degree 5, 8e-8.
 */
template <bool EXACT>
inline __m512 exp2Fraction(__m512 f) {
  if constexpr (EXACT) {
    __m512 p = _mm512_set1_ps(1.8775767e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.9893397e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5826318e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4015361e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9315308e-1f));
    return _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.9999994e-1f));
  } else {
    __m512 p = _mm512_set1_ps(7.8024521e-2f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.2606716e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9583354e-1f));
    return _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.9992520e-1f));
  }
}

/**
 * x / (1 + exp(-x)). The fast one, for what becomes bf16 anyway, is right to 1.5e-4 (relative), the exact
 * one to 1e-6.
 */
template <bool EXACT>
inline __m512 silu(__m512 x) {
  __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
  // Newton's step below multiplies the denominator with its inverse: not infinity with 0.
  if constexpr (EXACT) t = _mm512_min_ps(t, _mm512_set1_ps(125.f));
  const __m512 fraction = _mm512_reduce_ps(t, 0x09);  // t - floor(t)
  const __m512 denominator =
      _mm512_add_ps(_mm512_scalef_ps(exp2Fraction<EXACT>(fraction), t), _mm512_set1_ps(1.f));
  __m512 inverse = _mm512_rcp14_ps(denominator);
  if constexpr (EXACT) {
    inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(denominator, inverse, _mm512_set1_ps(2.f)));
  }
  return _mm512_mul_ps(x, inverse);
}

}  // namespace peregrine
