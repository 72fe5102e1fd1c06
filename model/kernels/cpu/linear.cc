// The HstuLinear family: x·W, then bias, SiLU and residual as the op's name says; bf16 products,
// float32 sums and float32 behind them. W is packed once, however many sessions share it.
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "ops.h"
#include "pack.h"

namespace peregrine {
namespace {

/** Row blocks and column blocks of one piece of work: columns of W that meet 128 rows in a row. */
constexpr int64_t ROW_BLOCKS = 4;
constexpr int64_t COLUMN_BLOCKS = 8;

/** W (depth, columns) as [column block][depth / DEPTH][two tiles of B]. */
struct PackedWeight {
  int64_t depth, columns;
  const uint32_t* data;

  int64_t steps() const { return roundUp<int64_t>(depth, DEPTH) / DEPTH; }
  int64_t blocks() const { return roundUp<int64_t>(columns, BLOCK) / BLOCK; }
  size_t words() const { return static_cast<size_t>(blocks() * steps() * 2 * TILE_WORDS); }
  const uint32_t* block(int64_t b) const { return data + b * steps() * 2 * TILE_WORDS; }

  void fill(const float* weight, uint32_t* to, int64_t block) const {
    for (int64_t s = 0; s < steps(); s++) {
      packRows({weight, columns, depth}, s * DEPTH, depth, block * BLOCK, columns,
               to + (block * steps() + s) * 2 * TILE_WORDS);
    }
  }
};

struct OwnedWeight : PackedWeight {
  explicit OwnedWeight(const Tensor& weight)
      : PackedWeight{weight.dims[0], weight.dims[1], nullptr},
        memory(static_cast<uint32_t*>(std::aligned_alloc(64, words() * sizeof(uint32_t)))) {
    if (memory == nullptr) throw std::bad_alloc();
    for (int64_t b = 0; b < blocks(); b++) fill(weight.floats(), memory, b);
    data = memory;
  }
  OwnedWeight(const OwnedWeight&) = delete;
  OwnedWeight& operator=(const OwnedWeight&) = delete;
  ~OwnedWeight() { std::free(memory); }
  uint32_t* memory;
};

/**
 * The packed form of a constant. The sessions of one engine read the same initializer, which is told by
 * its address: whoever holds the packed form has a session that keeps the initializer where it is.
 */
std::shared_ptr<const OwnedWeight> sharedWeight(const Tensor& weight) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int64_t, int64_t>, std::weak_ptr<const OwnedWeight>> known;
  const std::lock_guard<std::mutex> lock(mutex);
  std::erase_if(known, [](const auto& entry) { return entry.second.expired(); });
  auto& entry = known[{weight.data, weight.dims[0], weight.dims[1]}];
  std::shared_ptr<const OwnedWeight> packed = entry.lock();
  if (packed == nullptr) entry = packed = std::make_shared<const OwnedWeight>(weight);
  return packed;
}

struct Form {
  const char* name;
  bool bias, silu, residual;
};

struct Epilogue {
  const float* bias;
  const float* residual;
  bool silu;
  float* out;
  int64_t columns;

  /** One block of sums, as storeSums left them, into rows and columns from `row` and `column`. */
  void apply(const float* sums, int64_t row, int64_t count, int64_t column) const {
    for (int half = 0; half < 2; half++) {
      const int64_t c = column + half * TILE;
      const __mmask16 m = lanes(columns - c);
      if (m == 0) return;
      const __m512 add = bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(m, bias + c);
      for (int64_t i = 0; i < count; i++) {
        const float* sum = sums + i / TILE * 2 * TILE_WORDS + half * TILE_WORDS + i % TILE * TILE;
        __m512 y = _mm512_add_ps(_mm512_load_ps(sum), add);
        if (silu) y = peregrine::silu<true>(y);
        const int64_t at = (row + i) * columns + c;
        if (residual != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(m, residual + at));
        _mm512_mask_storeu_ps(out + at, m, y);
      }
    }
  }
};

class Linear : public Kernel {
 public:
  Linear(const NodeInfo& info, const Form& form) : form_(form) {
    const Tensor weight = info.constant(1);
    if (weight.present && weight.rank() == 2) weight_ = sharedWeight(weight);
  }

  void compute(Context& context) const override {
    const Tensor x = context.input(0), weight = context.input(1);
    const Tensor bias = form_.bias ? context.input(2) : Tensor{};
    const Tensor residual = form_.residual ? context.input(form_.bias ? 3 : 2) : Tensor{};
    expect(x.rank() >= 1 && weight.rank() == 2 && x.last() == weight.dims[0], form_.name,
           "x of (…, depth) and a weight of (depth, columns)");
    const int64_t depth = weight.dims[0], columns = weight.dims[1];
    std::vector<int64_t> dims = x.dims;
    dims.back() = columns;
    expect(!form_.bias || bias.size() == columns, form_.name,
           "a bias of " + std::to_string(columns) + " values");
    expect(!form_.residual || residual.dims == dims, form_.name, "a residual of the output's shape");
    const Epilogue epilogue{bias.floats(), residual.floats(), form_.silu, context.output(dims), columns};
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < dims.size(); i++) rows *= dims[i];
    if (rows == 0 || columns == 0) return;
    Scratch scratch(context);
    const PackedWeight w =
        weight_ == nullptr ? packNow(context, scratch, weight) : static_cast<PackedWeight>(*weight_);
    const int64_t blocks = roundUp<int64_t>(rows, BLOCK) / BLOCK;
    const int64_t blockWords = w.steps() * 2 * TILE_WORDS;
    uint32_t* a = scratch.take<uint32_t>(blocks * blockWords);
    const Rows input{x.floats(), depth, rows};
    context.parallelFor(blocks, [&](int64_t b) {
      const int64_t start = b * BLOCK;
      packA(input, start, std::min<int64_t>(BLOCK, rows - start), depth, a + b * blockWords);
    });
    const int64_t rowPieces = roundUp(blocks, ROW_BLOCKS) / ROW_BLOCKS;
    const int64_t columnPieces = roundUp(w.blocks(), COLUMN_BLOCKS) / COLUMN_BLOCKS;
    context.parallelFor(rowPieces * columnPieces, [&](int64_t piece) {
      const int64_t firstRow = piece / columnPieces * ROW_BLOCKS;
      const int64_t firstColumn = piece % columnPieces * COLUMN_BLOCKS;
      multiplyPiece(w, a, blockWords, rows, epilogue, firstRow, std::min(firstRow + ROW_BLOCKS, blocks),
                    firstColumn, std::min(firstColumn + COLUMN_BLOCKS, w.blocks()));
    });
  }

 private:
  static PackedWeight packNow(Context& context, Scratch& scratch, const Tensor& weight) {
    PackedWeight packed{weight.dims[0], weight.dims[1], nullptr};
    uint32_t* to = scratch.take<uint32_t>(packed.words());
    context.parallelFor(packed.blocks(), [&](int64_t b) { packed.fill(weight.floats(), to, b); });
    packed.data = to;
    return packed;
  }

  static void multiplyPiece(const PackedWeight& w, const uint32_t* a, int64_t blockWords, int64_t rows,
                            const Epilogue& epilogue, int64_t rowFrom, int64_t rowTo, int64_t columnFrom,
                            int64_t columnTo) {
    const TileScope scope;
    alignas(64) float sums[2][4 * TILE_WORDS];
    const int64_t height = rowTo - rowFrom, count = height * (columnTo - columnFrom);
    const auto rowOf = [&](int64_t i) { return (rowFrom + i % height) * BLOCK; };
    const auto columnOf = [&](int64_t i) { return columnFrom + i / height; };
    const auto product = [&](int64_t i) {
      const uint32_t* rowBlock = a + rowOf(i) / BLOCK * blockWords;
      zeroSums();
      if (rows - rowOf(i) > TILE) {
        multiply<true>(rowBlock, 2 * TILE_WORDS, w.block(columnOf(i)), 2 * TILE_WORDS, w.steps());
        storeSums<true>(sums[i & 1]);
      } else {
        multiply<false>(rowBlock, 2 * TILE_WORDS, w.block(columnOf(i)), 2 * TILE_WORDS, w.steps());
        storeSums<false>(sums[i & 1]);
      }
    };
    product(0);
    for (int64_t i = 0; i < count; i++) {
      // The next product is under way while this one is finished.
      if (i + 1 < count) product(i + 1);
      epilogue.apply(sums[i & 1], rowOf(i), std::min<int64_t>(BLOCK, rows - rowOf(i)),
                     columnOf(i) * BLOCK);
    }
  }

  Form form_;
  std::shared_ptr<const OwnedWeight> weight_;
};

constexpr Form FORMS[] = {
    {"HstuLinear", false, false, false},
    {"HstuLinearBias", true, false, false},
    {"HstuLinearSilu", false, true, false},
    {"HstuLinearBiasSilu", true, true, false},
    {"HstuLinearResidual", false, false, true},
    {"HstuLinearBiasResidual", true, false, true},
};

Op opOf(const Form& form) {
  return Op(form.name, CPU, std::vector<Input>(2 + form.bias + form.residual, {FLOAT, REQUIRED}),
            [](const NodeInfo& info, const Op& op) -> Kernel* {
              for (const Form& form : FORMS) {
                if (op.name == form.name) return new Linear(info, form);
              }
              return nullptr;
            });
}

}  // namespace

const std::vector<Op> HSTU_LINEAR = [] {
  std::vector<Op> ops;
  for (const Form& form : FORMS) ops.push_back(opOf(form));
  return ops;
}();

}  // namespace peregrine
