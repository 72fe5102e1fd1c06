// HstuAttention and HstuCausalAttention: float32 in and out, bf16 products, float32 sums; K and V of a
// history may be bf16 already. What they compute is what the functions of the same names in a bundle's
// graphs compute.
#include "attend.h"
#include "kv-tiles.h"
#include "ops.h"
#include "relative-bias.h"

namespace peregrine {
namespace {

/** Query rows whose relative bias is held at a time. */
constexpr int64_t SLAB = 256;

/** uvqk (tokens, [users,] 2·H·dv + 2·H·dqk), split u, v, q, k. */
struct Projected {
  int64_t tokens, users, heads, dqk, dv;
  const float* data;

  int64_t width() const { return 2 * heads * (dqk + dv); }
  int64_t stride() const { return users * width(); }
  const float* v(int64_t user, int64_t head) const {
    return data + user * width() + heads * dv + head * dv;
  }
  const float* q(int64_t user, int64_t head) const {
    return data + user * width() + 2 * heads * dv + head * dqk;
  }
  const float* k(int64_t user, int64_t head) const { return q(user, head) + heads * dqk; }
};

class Attention : public Kernel {
 public:
  Attention(const NodeInfo& info, const char* name)
      : name_(name),
        heads_(info.integer("num_heads")),
        dqk_(info.integer("head_dim_qk")),
        dv_(info.integer("head_dim_v")),
        alpha_(info.number("alpha")),
        scale_(info.number("scale")) {
    expect(heads_ > 0 && dqk_ > 0 && dv_ > 0 && dqk_ <= MAX_HEAD && dv_ <= MAX_HEAD, name,
           "heads of at most " + std::to_string(MAX_HEAD) + " values");
  }

 protected:
  Projected project(const Tensor& uvqk) const {
    const int rank = uvqk.rank();
    const int64_t width = 2 * heads_ * (dqk_ + dv_);
    expect(uvqk.present && (rank == 2 || rank == 3) && uvqk.last() == width, name_,
           "uvqk of (tokens, [users,] " + std::to_string(width) + ")");
    return {uvqk.dims[0], rank == 3 ? uvqk.dims[1] : 1, heads_, dqk_, dv_, uvqk.floats()};
  }

  std::vector<int64_t> outputDims(const Tensor& uvqk) const {
    std::vector<int64_t> dims = uvqk.dims;
    dims.back() = heads_ * dv_;
    return dims;
  }

  /** (n, [users,] width) with as many users as `x`; n. */
  int64_t rowsOf(const Tensor& t, int64_t width, const Projected& x, const char* what) const {
    expect(t.present && (t.type == FLOAT || t.type == BFLOAT16) && t.last() == width &&
               t.rank() == (x.users == 1 && t.rank() == 2 ? 2 : 3) &&
               (t.rank() == 2 || t.dims[1] == x.users),
           name_, std::string(what) + " of (n, [users,] " + std::to_string(width) + ")");
    return t.dims[0];
  }

  /** One head's columns of (n, [users,] heads · width). */
  Rows headOf(const Tensor& t, int64_t width, int64_t n, int64_t users, int64_t user,
              int64_t head) const {
    const int64_t all = heads_ * width, at = user * all + head * width;
    const bool isBf16 = t.type == BFLOAT16;
    Rows rows{static_cast<const char*>(t.data) + at * (isBf16 ? 2 : 4), users * all, n};
    rows.firstIsBf16 = isBf16;
    return rows;
  }

  /** Room for the keys of all users' heads, and where those of one lie. */
  struct KeyStore {
    Packed first;
    /** Blocks that a head has room for. */
    int64_t blocks;
    Packed at(int64_t i) const {
      Packed packed = first;
      packed.keys += i * blocks * first.keyBlock();
      packed.values += i * blocks * first.valueBlock();
      if (packed.tail != nullptr) packed.tail += i * first.valueBlock();
      return packed;
    }
  };
  KeyStore takeKeys(Scratch& scratch, int64_t n, int64_t users) const {
    const int64_t blocks = roundUp<int64_t>(n, BLOCK) / BLOCK;
    Packed first{nullptr, nullptr, dqk_, dv_};
    first.keys = scratch.take<uint32_t>(users * heads_ * blocks * first.keyBlock());
    first.values = scratch.take<uint32_t>(users * heads_ * blocks * first.valueBlock());
    return {first, blocks};
  }

  /** `k(user, head)` and `v(user, head)` are the rows of n keys and values. */
  template <class K, class V>
  void pack(Context& context, const KeyStore& store, int64_t n, int64_t users, const K& k,
            const V& v) const {
    // All heads of a block of tokens: their rows are read as they lie in memory, one behind the other.
    context.parallelFor(users * store.blocks, [&](int64_t i) {
      const int64_t user = i / store.blocks, block = i % store.blocks;
      for (int64_t head = 0; head < heads_; head++) {
        store.at(user * heads_ + head).fill(block, n, k(user, head), v(user, head));
      }
    });
  }

  static bool isTiles(const Tensor& t) { return t.type == UINT16; }

  /** K and V of n tokens that lie in tiles already (heads, capacity, width), as the engine keeps them. */
  KeyStore tilesOf(Scratch& scratch, const Tensor& k, const Tensor& v, int64_t n, int64_t users) const {
    const auto fits = [&](const Tensor& t, int64_t width) {
      return isTiles(t) && t.rank() == 3 && t.dims[0] == heads_ && t.dims[1] % BLOCK == 0 &&
             t.dims[1] >= n && t.last() == width && width % BLOCK == 0;
    };
    expect(users == 1 && fits(k, dqk_) && fits(v, dv_) && k.dims[1] == v.dims[1], name_,
           "tiles of one user's " + std::to_string(n) + " tokens");
    const auto words = [](const Tensor& t) {
      return static_cast<uint32_t*>(const_cast<void*>(t.data));
    };
    KeyStore store{{words(k), words(v), dqk_, dv_}, k.dims[1] / BLOCK};
    if (n % BLOCK == 0) return store;
    // Tokens behind the last may be another history's, or never written: a weight of 0 does not silence a NaN.
    Packed& first = store.first;
    first.tailBlock = n / BLOCK;
    uint32_t* tail = scratch.take<uint32_t>(heads_ * first.valueBlock());
    for (int64_t head = 0; head < heads_; head++) {
      const uint32_t* from = store.at(head).values + first.tailBlock * first.valueBlock();
      for (int64_t i = 0; i < first.valueBlock(); i += TILE) {
        const int64_t left = n % BLOCK - i / TILE % TILE * 2;
        const uint32_t mask = left >= 2 ? ~0u : left == 1 ? 0xffffu : 0u;
        _mm512_store_si512(tail + head * first.valueBlock() + i,
                           _mm512_and_si512(_mm512_loadu_si512(from + i),
                                            _mm512_set1_epi32(static_cast<int>(mask))));
      }
    }
    first.tail = tail;
    return store;
  }

  const char* name_;
  int64_t heads_, dqk_, dv_;
  float alpha_, scale_;
};

/**
 * (uvqk, k, v, [bias]) -> (m, [users,] H·dv): every candidate sees all of K, V and itself. Where K and V are tiles,
 * a fifth input, times (n), says of how many tokens.
 */
class CandidateAttention : public Attention {
 public:
  explicit CandidateAttention(const NodeInfo& info) : Attention(info, "HstuAttention") {}

  void compute(Context& context) const override {
    const Tensor uvqk = context.input(0), k = context.input(1), v = context.input(2);
    const Tensor bias = context.input(3);
    const Projected x = project(uvqk);
    const int64_t n = isTiles(k) ? context.input(4).last() : rowsOf(k, heads_ * dqk_, x, "k");
    expect(isTiles(k) || rowsOf(v, heads_ * dv_, x, "v") == n, name_, "k and v of one length");
    if (bias.present) {
      expect(bias.last() == n + 1 && bias.size() == x.users * (n + 1), name_,
             "bias of ([users,] n + 1)");
    }
    float* out = context.output(outputDims(uvqk));
    if (x.tokens == 0 || x.users == 0) return;
    Scratch scratch(context);
    const KeyStore store =
        isTiles(k) ? tilesOf(scratch, k, v, n, x.users) : takeKeys(scratch, n, x.users);
    const auto rows = [&](const Tensor& t, int64_t width) {
      return [this, &t, &x, n, width](int64_t user, int64_t head) {
        return headOf(t, width, n, x.users, user, head);
      };
    };
    if (!isTiles(k)) pack(context, store, n, x.users, rows(k, dqk_), rows(v, dv_));
    const int64_t blocks = roundUp<int64_t>(x.tokens, BLOCK) / BLOCK;
    const int64_t outStride = x.users * heads_ * dv_;
    // One head's row blocks one after the other: its keys stay in the second-level cache.
    context.parallelFor(x.users * heads_ * blocks, [&](int64_t i) {
      const int64_t user = i / blocks / heads_, head = i / blocks % heads_;
      const int64_t row = i % blocks * BLOCK;
      const int64_t offset = row * x.stride();
      const float* biasRow = bias.present ? bias.floats() + user * (n + 1) : nullptr;
      Queries block{x.q(user, head) + offset, x.stride(), std::min<int64_t>(BLOCK, x.tokens - row),
                    alpha_, scale_, n, false, biasRow, 0, {}, nullptr, outStride};
      block.self = {x.k(user, head) + offset, x.v(user, head) + offset, x.stride(),
                    biasRow == nullptr ? 0 : biasRow[n]};
      block.out = out + row * outStride + (user * heads_ + head) * dv_;
      attend(block, store.at(i / blocks));
    });
  }
};

/**
 * (uvqk, [past_k, past_v], times, new_times, [pos_w, time_w]) -> (c, [users,] H·dv): the new tokens see
 * the past ones and each other, causally. Tiles in the past's place hold the new tokens, too.
 */
class CausalAttention : public Attention {
 public:
  explicit CausalAttention(const NodeInfo& info) : Attention(info, "HstuCausalAttention") {}

  void compute(Context& context) const override {
    const Tensor uvqk = context.input(0);
    const Projected x = project(uvqk);
    Tensor pastK, pastV, next = context.input(1);
    size_t input = 1;
    int64_t past = 0;
    // Which of the function's forms this is: K and V are float32 or bf16, times are int64.
    if (next.type != INT64) {
      pastK = next;
      pastV = context.input(2);
      input = 3;
      past = isTiles(pastK) ? context.input(3).last() - x.tokens : rowsOf(pastK, heads_ * dqk_, x, "past_k");
      expect(isTiles(pastK) ? past >= 0 : rowsOf(pastV, heads_ * dv_, x, "past_v") == past, name_,
             "past_k and past_v of one length");
    }
    const Tensor times = context.input(input), positions = context.input(input + 2);
    const Tensor timeTable = context.input(input + 3);
    const int64_t n = past + x.tokens;
    const bool hasBias = positions.present;
    expect(times.present && times.type == INT64 && times.last() == n && times.size() == x.users * n,
           name_, "times of ([users,] " + std::to_string(n) + ") int64");
    if (hasBias) {
      expect(positions.type == FLOAT && positions.size() > 0 && timeTable.present &&
                 timeTable.type == FLOAT && timeTable.size() == TIME_BUCKETS,
             name_, "pos_w and a time_w of 128 values");
    }
    float* out = context.output(outputDims(uvqk));
    if (x.tokens == 0 || x.users == 0) return;
    Scratch scratch(context);
    const KeyStore store =
        isTiles(pastK) ? tilesOf(scratch, pastK, pastV, n, x.users) : takeKeys(scratch, n, x.users);
    const auto rows = [&](const Tensor& before, int64_t width, auto own) {
      return [&, width, own](int64_t user, int64_t head) {
        Rows all = past == 0 ? Rows{nullptr, 0, 0} : headOf(before, width, past, x.users, user, head);
        all.second = own(user, head);
        all.secondStride = x.stride();
        return all;
      };
    };
    if (!isTiles(pastK)) {
      pack(context, store, n, x.users,
           rows(pastK, dqk_, [&](int64_t user, int64_t head) { return x.k(user, head); }),
           rows(pastV, dv_, [&](int64_t user, int64_t head) { return x.v(user, head); }));
    }
    float* matrix = hasBias ? scratch.take<float>(std::min(SLAB, x.tokens) * n) : nullptr;
    const RelativeBias bias(positions.floats(), positions.size(), timeTable.floats(),
                            hasBias ? n : 0, hasBias ? scratch.take<float>(n) : nullptr);
    const int64_t outStride = x.users * heads_ * dv_;
    for (int64_t user = 0; user < x.users; user++) {
      for (int64_t start = 0; start < x.tokens; start += SLAB) {
        const int64_t count = std::min(SLAB, x.tokens - start);
        if (hasBias) {
          context.parallelFor(roundUp<int64_t>(count, TILE) / TILE, [&](int64_t b) {
            for (int64_t i = b * TILE; i < std::min<int64_t>((b + 1) * TILE, count); i++) {
              bias.row(past + start + i, times.longs() + user * n, matrix + i * n);
            }
          });
        }
        const int64_t blocks = roundUp<int64_t>(count, BLOCK) / BLOCK;
        context.parallelFor(heads_ * blocks, [&](int64_t i) {
          const int64_t head = i / blocks, row = i % blocks * BLOCK;
          const int64_t offset = (start + row) * x.stride();
          attend({x.q(user, head) + offset, x.stride(), std::min<int64_t>(BLOCK, count - row), alpha_,
                  scale_, past + start + row + 1, true, hasBias ? matrix + row * n : nullptr,
                  hasBias ? n : 0, {},
                  out + (start + row) * outStride + (user * heads_ + head) * dv_, outStride},
                 store.at(user * heads_ + head));
        });
      }
    }
  }
};

}  // namespace

// K and V are float32 or bf16, as rows or as tiles.
const Op HSTU_ATTENTION("HstuAttention", CPU,
                        {{FLOAT, REQUIRED},
                         {ANY, REQUIRED},
                         {ANY, REQUIRED},
                         {FLOAT, OPTIONAL},
                         {INT64, OPTIONAL}},
                        [](const NodeInfo& info, const Op&) -> Kernel* {
                          return new CandidateAttention(info);
                        });

// K/V of a past is there or not, so that the places behind uvqk hold either type.
const Op HSTU_CAUSAL_ATTENTION("HstuCausalAttention", CPU,
                               {{FLOAT, REQUIRED},
                                {ANY, REQUIRED},
                                {ANY, REQUIRED},
                                {ANY, OPTIONAL},
                                {ANY, OPTIONAL},
                                {ANY, OPTIONAL},
                                {ANY, OPTIONAL}},
                               [](const NodeInfo& info, const Op&) -> Kernel* {
                                 return new CausalAttention(info);
                               });

}  // namespace peregrine
