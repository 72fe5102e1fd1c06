// Rows to bf16 tiles: A row by row, B in pairs of rows.
#pragma once
#include <algorithm>

#include "tiles.h"

namespace peregrine {

/** Rows of one width somewhere in memory: `count` at `first`, then the others at `second`; strides in values. */
struct Rows {
  /** float32, or bf16. */
  const void* first;
  int64_t firstStride;
  int64_t count;
  const float* second = nullptr;
  int64_t secondStride = 0;
  bool firstIsBf16 = false;

  /** 32 values of row i from `column` on, as bf16; those from `width` on are 0. */
  __m512i load(int64_t i, int64_t column, int64_t width) const {
    const int64_t left = width - column;
    if (i >= count) return loadBf16(second + (i - count) * secondStride + column, left);
    const int64_t at = i * firstStride + column;
    return firstIsBf16 ? loadBf16(static_cast<const uint16_t*>(first) + at, left)
                       : loadBf16(static_cast<const float*>(first) + at, left);
  }
};

/** 16 x 16 words, transposed in place. */
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // r[4g + c] holds, in its four quarters, column c + 4·quarter of rows 4g … 4g + 3.
  for (int c = 0; c < 4; c++) {
    const __m512i low01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
    const __m512i high01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    const __m512i low23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i high23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    t[c + 4] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    t[c + 8] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    t[c + 12] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
  std::copy(t, t + 16, r);
}

/**
 * `count` rows of A, BLOCK at most, as [depth / DEPTH][row tile][16 rows][DEPTH]; columns behind `depth`
 * are 0, and so are rows behind `count` up to the next TILE.
 */
inline void packA(const Rows& rows, int64_t start, int64_t count, int64_t depth, uint32_t* to) {
  const int64_t padded = roundUp<int64_t>(count, TILE);
  for (int64_t i = 0; i < padded; i++) {
    uint32_t* row = to + i / TILE * TILE_WORDS + i % TILE * TILE;
    for (int64_t x = 0; x < depth; x += DEPTH) {
      const __m512i packed =
          i < count ? rows.load(start + i, x, depth) : _mm512_setzero_si512();
      _mm512_store_si512(row + x / DEPTH * 2 * TILE_WORDS, packed);
    }
  }
}

/**
 * Rows start … start + BLOCK - 1 as the columns of B (keys of a query·key product):
 * [depth / DEPTH][column tile][16 pairs][16 columns]. What is not there is 0.
 */
inline void packColumns(const Rows& rows, int64_t start, int64_t end, int64_t depth, uint32_t* to) {
  for (int half = 0; half < 2; half++) {
    const int64_t first = start + half * TILE;
    for (int64_t x = 0; x < depth; x += DEPTH) {
      __m512i words[16];
      for (int i = 0; i < TILE; i++) {
        words[i] =
            first + i < end ? rows.load(first + i, x, depth) : _mm512_setzero_si512();
      }
      transpose(words);
      uint32_t* tile = to + x / DEPTH * 2 * TILE_WORDS + half * TILE_WORDS;
      for (int i = 0; i < TILE; i++) _mm512_storeu_si512(tile + i * TILE, words[i]);
    }
  }
}

/**
 * Rows start … start + DEPTH - 1, columns `column` … column + BLOCK - 1 as B:
 * [column tile][16 pairs][16 columns]. What is not there is 0.
 */
inline void packRows(const Rows& rows, int64_t start, int64_t end, int64_t column, int64_t width,
                     uint32_t* to) {
  // Values of the even row and, from 32 on, of the odd one: columns 0-15, and 16 behind them.
  alignas(64) static const uint16_t INTERLEAVE[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                      37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                      11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i left = _mm512_load_si512(INTERLEAVE);
  const __m512i right = _mm512_add_epi16(left, _mm512_set1_epi16(TILE));
  const auto load = [&](int64_t row) {
    return row < end ? rows.load(row, column, width) : _mm512_setzero_si512();
  };
  for (int pair = 0; pair < TILE; pair++) {
    const __m512i even = load(start + 2 * pair), odd = load(start + 2 * pair + 1);
    uint32_t* tile = to + pair * TILE;
    _mm512_storeu_si512(tile, _mm512_permutex2var_epi16(even, left, odd));
    _mm512_storeu_si512(tile + TILE_WORDS, _mm512_permutex2var_epi16(even, right, odd));
  }
}

}  // namespace peregrine
