// HstuGate(uvqk, a, [gamma, beta]) -> u·LN(a), or [u, a, u·LN(a)]; float32 throughout.
#include <algorithm>
#include <cmath>

#include "ops.h"
#include "tiles.h"

namespace peregrine {
namespace {

/** Rows that one piece of work takes. */
constexpr int64_t ROWS = 16;

class Gate : public Kernel {
 public:
  explicit Gate(const NodeInfo& info)
      : isLinear_(info.integer("act") != 0),
        concat_(info.integer("concat") != 0),
        epsilon_(info.number("epsilon")),
        width_(info.integer("num_heads") * info.integer("head_dim_v")) {}

  void compute(Context& context) const override {
    const Tensor uvqk = context.input(0), a = context.input(1);
    const Tensor gamma = context.input(2), beta = context.input(3);
    expect(a.present && a.last() == width_ && uvqk.last() >= width_ && uvqk.rank() == a.rank(),
           "HstuGate", "u and a of (tokens, [users,] " + std::to_string(width_) + ")");
    expect(uvqk.size() * width_ == a.size() * uvqk.last(), "HstuGate", "uvqk and a of the same tokens");
    expect(gamma.present == beta.present && (!gamma.present || gamma.size() == width_), "HstuGate",
           "gamma and beta of " + std::to_string(width_) + " values");
    std::vector<int64_t> dims = a.dims;
    dims.back() = concat_ ? 3 * width_ : width_;
    float* out = context.output(dims);
    const int64_t tokens = a.size() / width_, outWidth = dims.back();
    context.parallelFor(roundUp(tokens, ROWS) / ROWS, [&](int64_t piece) {
      for (int64_t i = piece * ROWS; i < std::min((piece + 1) * ROWS, tokens); i++) {
        row(uvqk.floats() + i * uvqk.last(), a.floats() + i * width_, gamma.floats(), beta.floats(),
            out + i * outWidth);
      }
    });
  }

 private:
  void row(const float* u, const float* a, const float* gamma, const float* beta, float* out) const {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < width_; c += TILE) {
      sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes(width_ - c), a + c));
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / static_cast<float>(width_));
    __m512 squares = _mm512_setzero_ps();
    for (int64_t c = 0; c < width_; c += TILE) {
      const __mmask16 m = lanes(width_ - c);
      const __m512 d = _mm512_maskz_sub_ps(m, _mm512_maskz_loadu_ps(m, a + c), mean);
      squares = _mm512_fmadd_ps(d, d, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(width_);
    const __m512 inverse = _mm512_set1_ps(1 / std::sqrt(variance + epsilon_));
    for (int64_t c = 0; c < width_; c += TILE) {
      const __mmask16 m = lanes(width_ - c);
      const __m512 raw = _mm512_maskz_loadu_ps(m, a + c);
      __m512 norm = _mm512_mul_ps(_mm512_sub_ps(raw, mean), inverse);
      if (gamma != nullptr) {
        norm = _mm512_fmadd_ps(norm, _mm512_maskz_loadu_ps(m, gamma + c),
                               _mm512_maskz_loadu_ps(m, beta + c));
      }
      __m512 first = _mm512_maskz_loadu_ps(m, u + c);
      if (isLinear_) first = silu<true>(first);
      const __m512 gated = _mm512_mul_ps(first, norm);
      if (concat_) {
        _mm512_mask_storeu_ps(out + c, m, first);
        _mm512_mask_storeu_ps(out + width_ + c, m, raw);
        _mm512_mask_storeu_ps(out + 2 * width_ + c, m, gated);
      } else {
        _mm512_mask_storeu_ps(out + c, m, gated);
      }
    }
  }

  /** SiLU was not applied to u yet. */
  bool isLinear_;
  bool concat_;
  float epsilon_;
  int64_t width_;
};

}  // namespace

const Op HSTU_GATE("HstuGate", CPU,
                   {{FLOAT, REQUIRED}, {FLOAT, REQUIRED}, {FLOAT, OPTIONAL}, {FLOAT, OPTIONAL}},
                   [](const NodeInfo& info, const Op&) -> Kernel* { return new Gate(info); });

}  // namespace peregrine
