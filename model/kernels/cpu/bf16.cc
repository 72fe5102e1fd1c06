// HstuBf16: float32 rounded to bf16, to nearest even, as K and V of a history are kept. No function of a
// bundle: who loads a graph for these kernels puts it there. (ONNX Runtime's Cast takes seven times as long.)
#include <algorithm>

#include "ops.h"
#include "tiles.h"

namespace peregrine {
namespace {

/** Values that one piece of work takes. */
constexpr int64_t PIECE = 1 << 16;

class ToBf16 : public Kernel {
 public:
  void compute(Context& context) const override {
    const Tensor x = context.input(0);
    uint16_t* out = context.output<uint16_t>(x.dims);
    const int64_t size = x.size();
    context.parallelFor(roundUp(size, PIECE) / PIECE, [&](int64_t piece) {
      const int64_t end = std::min(size, (piece + 1) * PIECE);
      for (int64_t i = piece * PIECE; i < end; i += DEPTH) {
        const int64_t left = end - i;
        const __mmask32 there = left >= DEPTH ? ~0u : (1u << left) - 1;
        _mm512_mask_storeu_epi16(out + i, there, loadBf16(x.floats() + i, left));
      }
    });
  }
};

}  // namespace

const Op HSTU_BF16(
    "HstuBf16", CPU, {{FLOAT, REQUIRED}}, [](const NodeInfo&, const Op&) -> Kernel* { return new ToBf16; },
    BFLOAT16);

}  // namespace peregrine
