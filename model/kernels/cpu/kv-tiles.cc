// HstuKvTiles: K or V of new tokens into the tiles of their history, in place; and the way from and to rows for
// what leaves the process. No function of a bundle: who loads a graph for these kernels puts the op there.
#include "kv-tiles.h"

#include "ops.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace peregrine {
namespace {

/** (x (c, heads · width) float32, tiles (heads, capacity, width), times (n)) -> tiles, whose last c of n tokens it writes. */
class ToTiles : public Kernel {
 public:
  explicit ToTiles(const NodeInfo& info) : isKey_(info.integer("is_key") != 0) {}

  void compute(Context& context) const override {
    const Tensor x = context.input(0), tiles = context.input(1), times = context.input(2);
    expect(tiles.type == UINT16 && tiles.rank() == 3 && tiles.dims[1] % BLOCK == 0 && tiles.last() % BLOCK == 0,
           "HstuKvTiles", "tiles of (heads, capacity, width), multiples of 32");
    const KvTiles to{context.output<uint16_t>(tiles.dims), tiles.dims[0], tiles.dims[1], tiles.last(),
                     isKey_};
    expect(to.data == tiles.data, "HstuKvTiles", "tiles as its output, too");
    const int64_t all = to.heads * to.width, count = x.dims[0], start = times.last() - count;
    expect(x.type == FLOAT && x.rank() == 2 && x.last() == all && start >= 0 && times.last() <= to.capacity,
           "HstuKvTiles", "x of (c, " + std::to_string(all) + ") and times of c to capacity tokens");
    if (count == 0) return;
    const int64_t first = start / BLOCK, end = roundUp<int64_t>(start + count, BLOCK) / BLOCK;
    context.parallelFor(end - first, [&](int64_t i) {
      to.write(first + i, start, count, [&](int64_t head) {
        return Rows{nullptr, 0, 0, x.floats() + head * to.width, all};
      });
    });
  }

 private:
  bool isKey_;
};

}  // namespace

const Op HSTU_KV_TILES(
    "HstuKvTiles", CPU, {{FLOAT, REQUIRED}, {UINT16, REQUIRED}, {INT64, REQUIRED}},
    [](const NodeInfo& info, const Op&) -> Kernel* { return new ToTiles(info); }, UINT16);

}  // namespace peregrine

/** Rows (count, heads · width) of bf16 as tokens start … of tiles (heads, capacity, width). */
EXPORTED void PeregrineTilesFromRows(uint16_t* tiles, const uint16_t* rows, int64_t isKey, int64_t heads,
                                     int64_t capacity, int64_t width, int64_t start, int64_t count) {
  using namespace peregrine;
  const KvTiles to{tiles, heads, capacity, width, isKey != 0};
  for (int64_t b = start / BLOCK; b * BLOCK < start + count; b++) {
    to.write(b, start, count, [&](int64_t head) {
      Rows all{rows + head * width, heads * width, count};
      all.firstIsBf16 = true;
      return all;
    });
  }
}

/** The way back. */
EXPORTED void PeregrineTilesToRows(uint16_t* tiles, uint16_t* rows, int64_t isKey, int64_t heads,
                                   int64_t capacity, int64_t width, int64_t start, int64_t count) {
  using namespace peregrine;
  KvTiles{tiles, heads, capacity, width, isKey != 0}.read(start, count, rows);
}
