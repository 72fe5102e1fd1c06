// What the custom ops ask of a backend: the CUDA kernels, or the reference on the host that tests the ops without a GPU.
// Plain C structs, so that tests can fill them in through a foreign function interface. All tensors are float16 but for
// times, lengths, rows and masks; strides count elements.
#pragma once
#include <cstdint>

// Also for tests, which call a library by these names.
#define HSTU_ENTRY __attribute__((visibility("default")))

extern "C" {

/// Element (token, user, head, c) lies at token·row + user·user + head·head + c.
struct HstuView {
  const void* at;
  int64_t row, user, head;
};

/// out = scale·SiLU(alpha·q·kᵀ + bias)·v, per user and head. Keys come in two parts: one that every row sees (cached
/// history), and for `causal` the rows' own tokens, of which row i sees those up to i. Without `causal` each row sees
/// itself beside the history.
struct HstuAttentionArgs {
  HstuView q, ownK, ownV, k, v;
  void* out;  ///< (rows, users, heads·dv), contiguous
  int32_t users, heads, dqk, dv;
  int32_t rows, keys;  ///< per user; keys of the part that every row sees
  int32_t causal;
  int32_t positions;
  const int64_t* lengths;     ///< (users) how many of `keys` are real; null: all
  const void *posW, *timeW;   ///< (positions) and (128): the relative bias; null: none
  const int64_t* times;       ///< (users, keys), causal: (users, keys + rows)
  const int64_t* queryTimes;  ///< (users) of the rows, where they are candidates
  float alpha, scale;
  int32_t warpgroups, split;  ///< 64 rows each of a block, blocks that share the keys; 0: by cost
  void* stream;
};

// Where rows come in parts, a request's history and its candidates, one launch computes all: `…2` is the second part.

/// Rows of x (rows, depth) and the columns begin … end - 1 of w: y (rows, end - begin).
struct HstuLinearPart {
  const void* x;
  void* y;
  int64_t rows;  ///< 0: there is no such part
  int32_t begin, end;
};

/// y = SiLU?(x·w + bias) of each part; w (depth, width), bias (width).
struct HstuLinearArgs {
  const void *w, *bias;  ///< bias may be null
  HstuLinearPart parts[3];
  int32_t depth, width, silu;
  int32_t isConstant;   ///< no kernel of the stream writes w
  int32_t tile, split;  ///< index into the tile sizes + 1, blocks that share the depth; 0: by cost
  void* stream;
};

/// u·LN(a), or [u, a, u·LN(a)] with `concat`; u are the first columns of uvqk's rows, through SiLU with `act`.
struct HstuGateArgs {
  const void *uvqk, *a, *gamma, *beta;  ///< gamma and beta may be null: 1 and 0
  void* out;
  int64_t rows;
  const void *uvqk2, *a2;
  void* out2;
  int64_t rows2, uvqkRow;
  int32_t width, act, concat;
  float epsilon;
  void* stream;
};

/// LN(s)·gamma + beta over rows of `width`, where s is x, or x + update (+ bias), and then written as well.
struct HstuNormArgs {
  const void *x, *gamma, *beta;
  const void *update, *bias;  ///< may be null
  void *out, *sum;            ///< sum: null without update
  int64_t rows;
  const void *x2, *update2;
  void *out2, *sum2;
  int64_t rows2;
  int32_t width;
  float epsilon;
  void* stream;
};

/// Sum of `slots` rows of the table, and of the rows of `action` whose bit the token's mask has; with gamma also its norm.
struct HstuEmbedArgs {
  const void* table;
  const int32_t* ids;      ///< (users, tokens, slots)
  const int32_t* masks;    ///< (users, tokens); null: items alone
  const void* action;      ///< (actions, width)
  void* out;               ///< (tokens, users, width)
  int64_t rows;            ///< tokens of all users
  const int32_t* ids2;     ///< without masks
  void* out2;
  int64_t rows2;
  const void *gamma, *beta;
  void *norm, *norm2;  ///< like out
  int32_t users, slots, width, actions;
  float epsilon;
  void* stream;
};

/// x·w + bias in float32: x (tokens, users, depth), w (depth, tasks), bias (tasks).
struct HstuLogitsArgs {
  const void *x, *w, *bias;
  float* out;    ///< (users, tokens, tasks)
  int64_t rows;  ///< tokens of all users
  int32_t users, depth, tasks;
  void* stream;
};

/// 0, or the reason, which is static text.
HSTU_ENTRY const char* hstuAttention(const HstuAttentionArgs* args);
HSTU_ENTRY const char* hstuLinear(const HstuLinearArgs* args);
HSTU_ENTRY const char* hstuGate(const HstuGateArgs* args);
HSTU_ENTRY const char* hstuNorm(const HstuNormArgs* args);
HSTU_ENTRY const char* hstuEmbed(const HstuEmbedArgs* args);
HSTU_ENTRY const char* hstuLogits(const HstuLogitsArgs* args);
/// `bytes` of the host's page-locked memory, as the stream comes to it.
HSTU_ENTRY const char* hstuCopy(void* to, const void* from, int64_t bytes, void* stream);
}
