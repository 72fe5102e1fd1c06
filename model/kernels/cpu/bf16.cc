// HstuBf16: float32 or float16 rounded to bf16, to nearest even, as K and V of a history are kept. No function of a
// bundle: who loads a graph for these kernels puts it there. (ONNX Runtime's Cast takes seven times as long.)
#include <algorithm>

#include "ops.h"
#include "tiles.h"

namespace peregrine {
namespace {

/** Values that one piece of work takes. */
constexpr int64_t PIECE = 1 << 16;

/** 32 values of float16 as bf16; those behind `count` are 0. */
__m512i loadHalf(const uint16_t* from, int64_t count) {
  const __m512i halves = loadBf16(from, count);
  return toBf16(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
}

class ToBf16 : public Kernel {
 public:
  void compute(Context& context) const override {
    const Tensor x = context.input(0);
    expect(x.type == FLOAT || x.type == FLOAT16, "HstuBf16", "float32 or float16");
    uint16_t* out = context.output<uint16_t>(x.dims);
    const int64_t size = x.size();
    context.parallelFor(roundUp(size, PIECE) / PIECE, [&](int64_t piece) {
      const int64_t end = std::min(size, (piece + 1) * PIECE);
      for (int64_t i = piece * PIECE; i < end; i += DEPTH) {
        const int64_t left = end - i;
        const __mmask32 there = left >= DEPTH ? ~0u : (1u << left) - 1;
        const __m512i rounded = x.type == FLOAT
                                    ? loadBf16(x.floats() + i, left)
                                    : loadHalf(static_cast<const uint16_t*>(x.data) + i, left);
        _mm512_mask_storeu_epi16(out + i, there, rounded);
      }
    });
  }
};

}  // namespace

const Op HSTU_BF16(
    "HstuBf16", CPU, {{ANY, REQUIRED}}, [](const NodeInfo&, const Op&) -> Kernel* { return new ToBf16; },
    BFLOAT16);

}  // namespace peregrine
