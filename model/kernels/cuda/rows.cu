// What works row by row and is bound by memory: layer norm, gate, embedding, logits. A warp per row, eight columns a lane and turn.
#include <algorithm>
#include <cstdint>
#include "hopper.cuh"
#include "launch.h"
#include "launcher.cuh"

namespace hstu {
namespace {

constexpr int kRowsPerBlock = 4;

__device__ __forceinline__ void unpack(const uint4& packed, float (&x)[8]) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = unpackHalves(words[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
  return make_uint4(packHalves(x[0], x[1]), packHalves(x[2], x[3]), packHalves(x[4], x[5]), packHalves(x[6], x[7]));
}

__device__ __forceinline__ float warpSum(float x) {
#pragma unroll
  for (int lane = 16; lane; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}

/// One row of a layer norm: the row's vectors stay in registers where Vectors·256 columns hold it, else they are read again.
template <int Vectors>
struct NormedRow {
  const uint4* from;
  int vectors, lane;
  uint4 kept[Vectors ? Vectors : 1];
  float mean, scale;

  __device__ __forceinline__ uint4 at(int turn) const { return Vectors ? kept[turn] : from[lane + 32 * turn]; }

  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    if constexpr (Vectors > 0) {
#pragma unroll
      for (int turn = 0; turn < Vectors; turn++)
        if (lane + 32 * turn < vectors) visit(turn, lane + 32 * turn);
    } else {
      for (int turn = 0; lane + 32 * turn < vectors; turn++) visit(turn, lane + 32 * turn);
    }
  }

  /// `load` gives a vector; `row` is where it can be read again.
  template <class Load>
  __device__ __forceinline__ NormedRow(const __half* row, int width, int lane_, float epsilon, Load load)
      : from(reinterpret_cast<const uint4*>(row)), vectors(width / 8), lane(lane_) {
    each([&](int turn, int vector) {
      const uint4 x = load(vector);
      if constexpr (Vectors > 0) kept[turn] = x;
    });
    float sum = 0.f;
    each([&](int turn, int) {
      float x[8];
      unpack(at(turn), x);
#pragma unroll
      for (int i = 0; i < 8; i++) sum += x[i];
    });
    mean = warpSum(sum) / width;
    float squares = 0.f;
    each([&](int turn, int) {
      float x[8];
      unpack(at(turn), x);
#pragma unroll
      for (int i = 0; i < 8; i++) squares = fmaf(x[i] - mean, x[i] - mean, squares);
    });
    scale = rsqrtf(warpSum(squares) / width + epsilon);
  }

  __device__ __forceinline__ void normed(int turn, int vector, const __half* gamma, const __half* beta, float (&y)[8]) const {
    float g[8], b[8];
    unpack(at(turn), y);
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] = (y[i] - mean) * scale;
    if (gamma == nullptr) return;
    unpack(__ldg(reinterpret_cast<const uint4*>(gamma) + vector), g);
    unpack(__ldg(reinterpret_cast<const uint4*>(beta) + vector), b);
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] = fmaf(y[i], g[i], b[i]);
  }
};

/// A warp's row: which part it is in, and its number there. No row is behind the last.
struct PlaceOfRow {
  int64_t row;
  bool isSecond, isRow;
  __device__ __forceinline__ PlaceOfRow(int64_t rows, int64_t rows2) {
    row = int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
    isRow = row < rows + rows2;
    isSecond = row >= rows;
    if (isSecond) row -= rows;
  }
};

struct NormPart {
  const __half *x, *update;
  __half *sum, *out;
  int64_t rows;
};

/// With `Adds`, of x + update (+ bias), which goes into `sum`.
template <int Vectors, bool Adds>
__global__ void __launch_bounds__(kRowsPerBlock * 32)
    norm(NormPart first, NormPart second, const __half* bias, const __half* gamma, const __half* beta, int width, float epsilon) {
  waitForBefore();
  const PlaceOfRow place(first.rows, second.rows);
  if (!place.isRow) return;
  const int64_t row = place.row;
  const __half *x = place.isSecond ? second.x : first.x, *update = place.isSecond ? second.update : first.update;
  __half *sum = place.isSecond ? second.sum : first.sum, *out = place.isSecond ? second.out : first.out;
  const auto at = [&](const __half* matrix) { return reinterpret_cast<const uint4*>(matrix + row * width); };
  const NormedRow<Vectors> normedRow((Adds ? sum : x) + row * width, width, threadIdx.x % 32, epsilon, [&](int vector) {
    const uint4 own = at(x)[vector];
    if constexpr (!Adds) return own;
    float a[8], b[8];
    unpack(own, a);
    unpack(at(update)[vector], b);
#pragma unroll
    for (int i = 0; i < 8; i++) a[i] += b[i];
    if (bias) {
      unpack(__ldg(reinterpret_cast<const uint4*>(bias) + vector), b);
#pragma unroll
      for (int i = 0; i < 8; i++) a[i] += b[i];
    }
    const uint4 added = pack(a);
    reinterpret_cast<uint4*>(sum + row * width)[vector] = added;
    return added;
  });
  uint4* to = reinterpret_cast<uint4*>(out + row * width);
  normedRow.each([&](int turn, int vector) {
    float y[8];
    normedRow.normed(turn, vector, gamma, beta, y);
    to[vector] = pack(y);
  });
}

struct GatePart {
  const __half *uvqk, *a;
  __half* out;
  int64_t rows;
};

template <int Vectors>
__global__ void __launch_bounds__(kRowsPerBlock * 32)
    gate(GatePart first, GatePart second, int64_t uvqkRow, const __half* gamma, const __half* beta, int width, int act, int concat,
         float epsilon) {
  waitForBefore();
  const PlaceOfRow place(first.rows, second.rows);
  if (!place.isRow) return;
  const int64_t row = place.row;
  const __half *uvqk = place.isSecond ? second.uvqk : first.uvqk, *a = place.isSecond ? second.a : first.a;
  __half* out = place.isSecond ? second.out : first.out;
  const uint4* own = reinterpret_cast<const uint4*>(a + row * width);
  const NormedRow<Vectors> normedRow(a + row * width, width, threadIdx.x % 32, epsilon,
                                     [&](int vector) { return own[vector]; });
  const uint4* from = reinterpret_cast<const uint4*>(uvqk + row * uvqkRow);
  uint4* to = reinterpret_cast<uint4*>(out + row * width * (concat ? 3 : 1));
  const int vectors = width / 8;
  normedRow.each([&](int turn, int vector) {
    float u[8], y[8];
    unpack(__ldg(from + vector), u);
    if (act) {
#pragma unroll
      for (int i = 0; i < 8; i++) u[i] = siluOfHalf(0.5f * u[i]);
    }
    normedRow.normed(turn, vector, gamma, beta, y);
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] *= u[i];
    if (concat) {
      to[vector] = pack(u);
      to[vectors + vector] = normedRow.at(turn);
      to[2 * vectors + vector] = pack(y);
    } else {
      to[vector] = pack(y);
    }
  });
}

struct EmbedPart {
  const int32_t *ids, *masks;
  __half *out, *norm;
  int64_t rows;
};

struct EmbedParams {
  const __half *table, *action, *gamma, *beta;
  int users, slots, width, actions;
  float epsilon;
};

/// Rows of `out` go token by token, those of ids and masks user by user. With `Norms` also the rows' norm.
template <int Vectors, bool Norms>
__global__ void __launch_bounds__(kRowsPerBlock * 32) embed(EmbedPart first, EmbedPart second, EmbedParams p) {
  waitForBefore();
  const PlaceOfRow place(first.rows, second.rows);
  if (!place.isRow) return;
  const int64_t row = place.row, rows = place.isSecond ? second.rows : first.rows;
  const int32_t *ids = place.isSecond ? second.ids : first.ids, *masks = place.isSecond ? second.masks : first.masks;
  __half *out = place.isSecond ? second.out : first.out, *normed = place.isSecond ? second.norm : first.norm;
  const int vectors = p.width / 8, lane = threadIdx.x % 32;
  const int64_t from = row % p.users * (rows / p.users) + row / p.users;
  const uint32_t mask = masks ? uint32_t(__ldg(masks + from)) : 0;
  uint4* to = reinterpret_cast<uint4*>(out + row * p.width);
  const auto sumAt = [&](int vector) {
    float sum[8] = {};
    const auto at = [&](const __half* table, int64_t which) {
      return __ldg(reinterpret_cast<const uint4*>(table + which * p.width) + vector);
    };
    const auto add = [&](const uint4& packed) {
      float x[8];
      unpack(packed, x);
#pragma unroll
      for (int i = 0; i < 8; i++) sum[i] += x[i];
    };
    // Loads of four slots are under way together.
    constexpr int kBatch = 4;
    for (int s = 0; s < p.slots; s += kBatch) {
      uint4 found[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; i++)
        found[i] = s + i < p.slots ? at(p.table, __ldg(ids + from * p.slots + s + i)) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int i = 0; i < kBatch; i++) add(found[i]);
    }
    for (int bit = 0; bit < p.actions; bit++)
      if (mask >> bit & 1) add(at(p.action, bit));
    const uint4 packed = pack(sum);
    to[vector] = packed;
    return packed;
  };
  if constexpr (!Norms) {
    for (int vector = lane; vector < vectors; vector += 32) sumAt(vector);
  } else {
    const NormedRow<Vectors> normedRow(out + row * p.width, p.width, lane, p.epsilon, sumAt);
    uint4* toNorm = reinterpret_cast<uint4*>(normed + row * p.width);
    normedRow.each([&](int turn, int vector) {
      float y[8];
      normedRow.normed(turn, vector, p.gamma, p.beta, y);
      toNorm[vector] = pack(y);
    });
  }
}

/// out = x·w + bias for a few columns, in float32; rows of `out` go user by user, those of x token by token. A block's
/// results leave together: `out` may lie in the host's memory, where every write is a packet of its own.
__global__ void __launch_bounds__(kRowsPerBlock * 32)
    logits(const __half* x, const __half* w, const __half* bias, float* out, int64_t rows, int users, int depth, int tasks) {
  constexpr int kTasks = 32;
  __shared__ float found[kRowsPerBlock][kTasks];
  waitForBefore();
  const int64_t row0 = int64_t(blockIdx.x) * kRowsPerBlock, row = row0 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, blockRows = int(min(int64_t(kRowsPerBlock), rows - row0));
  const uint4* from = reinterpret_cast<const uint4*>(x + min(row, rows - 1) * depth);
  for (int task0 = 0; task0 < tasks; task0 += kTasks) {
    const int count = min(kTasks, tasks - task0);
    for (int i = 0; i < count; i++) {
      float sum = 0.f;
      for (int vector = lane; vector < depth / 8; vector += 32) {
        float y[8];
        unpack(__ldg(from + vector), y);
#pragma unroll
        for (int c = 0; c < 8; c++) sum = fmaf(y[c], __half2float(__ldg(w + int64_t(8 * vector + c) * tasks + task0 + i)), sum);
      }
      sum = warpSum(sum);
      if (lane == 0) found[threadIdx.x / 32][i] = sum + __half2float(__ldg(bias + task0 + i));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < blockRows * count; i += kRowsPerBlock * 32) {
      const int64_t at = row0 + i / count;
      out[(at % users * (rows / users) + at / users) * tasks + task0 + i % count] = found[i / count][i % count];
    }
    __syncthreads();
  }
}

constexpr const char* kWidth = "a row's width must be a multiple of 8";
constexpr const char* kAlignment = "rows must begin at multiples of 16 bytes";

bool isAligned(std::initializer_list<const void*> addresses) {
  return std::all_of(addresses.begin(), addresses.end(), [](const void* at) { return uintptr_t(at) % 16 == 0; });
}

template <auto kernel, class... Arguments>
const char* launchRows(int64_t rows, void* stream, const Arguments&... arguments) {
  static const cudaError_t prepared = prepareKernel(kernel);
  if (prepared != cudaSuccess) return cudaGetErrorString(prepared);
  const dim3 grid(unsigned((rows + kRowsPerBlock - 1) / kRowsPerBlock));
  return launchKernel(kernel, grid, kRowsPerBlock * 32, spreadBytes(grid.x), 0, stream, arguments...);
}

/// Calls `run` with the vectors per lane that hold a row, 0 where none does.
template <class Run>
const char* withVectors(int width, Run run) {
  if (width <= 256) return run(std::integral_constant<int, 1>());
  if (width <= 512) return run(std::integral_constant<int, 2>());
  if (width <= 1024) return run(std::integral_constant<int, 4>());
  if (width <= 2048) return run(std::integral_constant<int, 8>());
  return run(std::integral_constant<int, 0>());
}

}  // namespace
}  // namespace hstu

using namespace hstu;

namespace {

const __half* halves(const void* at) { return static_cast<const __half*>(at); }
__half* halves(void* at) { return static_cast<__half*>(at); }

}  // namespace

extern "C" const char* hstuNorm(const HstuNormArgs* args) {
  const HstuNormArgs& n = *args;
  if (n.rows + n.rows2 == 0) return nullptr;
  if (n.width % 8) return kWidth;
  if (!isAligned({n.x, n.update, n.bias, n.gamma, n.beta, n.sum, n.out, n.x2, n.update2, n.sum2, n.out2})) return kAlignment;
  const NormPart first{halves(n.x), halves(n.update), halves(n.sum), halves(n.out), n.rows};
  const NormPart second{halves(n.x2), halves(n.update2), halves(n.sum2), halves(n.out2), n.rows2};
  return withVectors(n.width, [&](auto vectors) {
    constexpr int kVectors = vectors.value;
    const auto launch = [&](auto adds) {
      return launchRows<norm<kVectors, adds.value>>(n.rows + n.rows2, n.stream, first, second, halves(n.bias), halves(n.gamma),
                                                    halves(n.beta), n.width, n.epsilon);
    };
    return n.update ? launch(std::true_type()) : launch(std::false_type());
  });
}

extern "C" const char* hstuGate(const HstuGateArgs* args) {
  const HstuGateArgs& g = *args;
  if (g.rows + g.rows2 == 0) return nullptr;
  if (g.width % 8 || g.uvqkRow % 8) return kWidth;
  if (!isAligned({g.uvqk, g.a, g.gamma, g.beta, g.out, g.uvqk2, g.a2, g.out2})) return kAlignment;
  const GatePart first{halves(g.uvqk), halves(g.a), halves(g.out), g.rows};
  const GatePart second{halves(g.uvqk2), halves(g.a2), halves(g.out2), g.rows2};
  return withVectors(g.width, [&](auto vectors) {
    return launchRows<gate<vectors.value>>(g.rows + g.rows2, g.stream, first, second, g.uvqkRow, halves(g.gamma),
                      halves(g.beta), g.width, g.act, g.concat, g.epsilon);
  });
}

extern "C" const char* hstuEmbed(const HstuEmbedArgs* args) {
  const HstuEmbedArgs& e = *args;
  if (e.rows + e.rows2 == 0) return nullptr;
  if (e.width % 8) return kWidth;
  if (!isAligned({e.table, e.action, e.out, e.out2, e.gamma, e.beta, e.norm, e.norm2})) return kAlignment;
  const EmbedPart first{e.ids, e.masks, halves(e.out), halves(e.norm), e.rows};
  const EmbedPart second{e.ids2, nullptr, halves(e.out2), halves(e.norm2), e.rows2};
  const EmbedParams p{halves(e.table), halves(e.action), halves(e.gamma), halves(e.beta),
                      e.users, e.slots, e.width, e.actions, e.epsilon};
  if (e.gamma == nullptr) return launchRows<embed<0, false>>(e.rows + e.rows2, e.stream, first, second, p);
  return withVectors(e.width, [&](auto vectors) {
    return launchRows<embed<vectors.value, true>>(e.rows + e.rows2, e.stream, first, second, p);
  });
}

extern "C" const char* hstuLogits(const HstuLogitsArgs* args) {
  const HstuLogitsArgs& l = *args;
  if (l.rows == 0) return nullptr;
  if (l.depth % 8) return kWidth;
  if (!isAligned({l.x})) return kAlignment;
  return launchRows<logits>(l.rows, l.stream, static_cast<const __half*>(l.x), static_cast<const __half*>(l.w),
                    static_cast<const __half*>(l.bias), l.out, l.rows, l.users, l.depth, l.tasks);
}
