// float32 rows to bf16 tiles: A row by row, B in pairs of rows.
#pragma once
#include <algorithm>

#include "tiles.h"

namespace peregrine {

/** Rows of one width somewhere in memory: `count` at `first`, then the others at `second`. */
struct Rows {
  const float* first;
  int64_t firstStride;
  int64_t count;
  const float* second = nullptr;
  int64_t secondStride = 0;

  const float* operator[](int64_t i) const {
    return i < count ? first + i * firstStride : second + (i - count) * secondStride;
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
          i < count ? loadBf16(rows[start + i] + x, depth - x) : _mm512_setzero_si512();
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
            first + i < end ? loadBf16(rows[first + i] + x, depth - x) : _mm512_setzero_si512();
      }
      transpose(words);
      uint32_t* tile = to + x / DEPTH * 2 * TILE_WORDS + half * TILE_WORDS;
      for (int i = 0; i < TILE; i++) _mm512_store_si512(tile + i * TILE, words[i]);
    }
  }
}

/**
 * Rows start … start + DEPTH - 1, columns `column` … column + BLOCK - 1 as B:
 * [column tile][16 pairs][16 columns]. What is not there is 0.
 */
inline void packRows(const Rows& rows, int64_t start, int64_t end, int64_t column, int64_t width,
                     uint32_t* to) {
  alignas(64) static const uint16_t INTERLEAVE[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i interleave = _mm512_load_si512(INTERLEAVE);
  for (int pair = 0; pair < TILE; pair++) {
    for (int half = 0; half < 2; half++) {
      const int64_t c = column + half * TILE;
      const auto load = [&](int64_t row) {
        return row < end ? _mm512_maskz_loadu_ps(lanes(width - c), rows[row] + c)
                         : _mm512_setzero_ps();
      };
      const __m512i both = toBf16(load(start + 2 * pair), load(start + 2 * pair + 1));
      _mm512_store_si512(to + half * TILE_WORDS + pair * TILE,
                         _mm512_permutexvar_epi16(interleave, both));
    }
  }
}

}  // namespace peregrine
