// K or V of a history, kept as the tiles that products read: nothing is packed when it is used.
#pragma once
#include "pack.h"

namespace peregrine {

/**
 * (heads, capacity, width) in bf16: of each head blocks of BLOCK tokens, K as packColumns lays them out and V as
 * packRows does. `capacity` and `width` are multiples of BLOCK. A token has bytes of its own: others may read
 * the tokens before it while it is written.
 */
struct KvTiles {
  uint16_t* data;
  int64_t heads, capacity, width;
  bool isKey;

  int64_t blockWords() const { return width * BLOCK / 2; }
  int64_t headWords() const { return capacity * width / 2; }
  uint32_t* block(int64_t head, int64_t b) const {
    return reinterpret_cast<uint32_t*>(data) + head * headWords() + b * blockWords();
  }

  /** The words that hold 16 values of V, or 32 of K at a stride of TILE, of a token from `column` on. */
  uint32_t* words(int64_t head, int64_t token, int64_t column) const {
    const int64_t key = token % BLOCK;
    return block(head, token / BLOCK) + column / DEPTH * 2 * TILE_WORDS +
           (isKey ? key / TILE * TILE_WORDS + key % TILE : key / 2 * TILE);
  }
  static __m512i everyTile() {
    return _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                              _mm512_set1_epi32(TILE));
  }

  /** 32 values of a token from `column` on. */
  void put(int64_t head, int64_t token, int64_t column, __m512i values) const {
    uint32_t* to = words(head, token, column);
    if (isKey) return _mm512_i32scatter_epi32(to, everyTile(), values, 4);
    const auto half = [&](uint32_t* pairs, __m256i some) {
      const __m512i wide = _mm512_cvtepu16_epi32(some);
      if (token % 2 == 0) _mm512_mask_storeu_epi16(pairs, 0x55555555u, wide);
      else _mm512_mask_storeu_epi16(pairs, 0xaaaaaaaau, _mm512_slli_epi32(wide, 16));
    };
    half(to, _mm512_castsi512_si256(values));
    half(to + TILE_WORDS, _mm512_extracti64x4_epi64(values, 1));
  }
  __m512i get(int64_t head, int64_t token, int64_t column) const {
    const uint32_t* from = words(head, token, column);
    if (isKey) return _mm512_i32gather_epi32(everyTile(), from, 4);
    const auto half = [&](const uint32_t* pairs) {
      const __m512i both = _mm512_loadu_si512(pairs);
      return _mm512_cvtepi32_epi16(token % 2 == 0 ? both : _mm512_srli_epi32(both, 16));
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(from)), half(from + TILE_WORDS), 1);
  }

  /** Tokens start … start + count - 1 of block `b`, from rows 0, 1, … of every head. */
  template <class RowsOf>
  void write(int64_t b, int64_t start, int64_t count, const RowsOf& rowsOf) const {
    const int64_t from = std::max(start, b * BLOCK), to = std::min(start + count, (b + 1) * BLOCK);
    for (int64_t head = 0; head < heads; head++) {
      const Rows rows = rowsOf(head);
      if (to - from == BLOCK) {
        if (isKey) packColumns(rows, from - start, count, width, block(head, b));
        for (int64_t c = 0; c < width && !isKey; c += BLOCK) {
          packRows(rows, from - start, count, c, width, block(head, b) + c / BLOCK * 2 * TILE_WORDS);
        }
        continue;
      }
      for (int64_t token = from; token < to; token++) {
        for (int64_t column = 0; column < width; column += DEPTH) {
          put(head, token, column, rows.load(token - start, column, width));
        }
      }
    }
  }

  /** Tokens start … start + count - 1 to `rows` (count, heads · width). */
  void read(int64_t start, int64_t count, uint16_t* rows) const {
    for (int64_t token = start; token < start + count; token++) {
      for (int64_t head = 0; head < heads; head++, rows += width) {
        for (int64_t column = 0; column < width; column += DEPTH) {
          _mm512_storeu_si512(rows + column, get(head, token, column));
        }
      }
    }
  }
};

}  // namespace peregrine
