// Launches the attention kernels of one head width, HSTU_WIDTH: compiled once per width, side by side.
#include <atomic>
#include "attention.cuh"
#include "attention-widths.h"
#include "launcher.cuh"
#include "maps.h"
#include "plan.h"

namespace hstu {
namespace {

constexpr int kWidth = HSTU_WIDTH, kKeys = keysOfTile(kWidth), kStages = kWidth == 64 ? 3 : 2;

template <int Warpgroups, bool Causal, bool Bias>
struct Launcher {
  using C = AttentionConfig<kWidth, kKeys, Warpgroups, kStages, Causal, Bias>;
  static constexpr auto kernel = attention<kWidth, kKeys, Warpgroups, kStages, Causal, Bias>;

  static constexpr unsigned kThreads = (Warpgroups + 1) * 128;

  static cudaError_t prepare() {
    static const cudaError_t done = prepareKernel(kernel, C::SharedBytes);
    return done;
  }

  /// Clusters that run at once: the GPU's groups of multiprocessors differ in size, so it is asked.
  static int slots(int split) {
    static std::atomic<int> known[kMostSplits];
    std::atomic<int>& cached = known[split - 1];
    if (const int found = cached.load()) return found;
    cached = prepare() == cudaSuccess ? clustersAtOnce(kernel, kThreads, C::SharedBytes, split) : 100 / split;
    return cached;
  }

  static const char* launch(const HstuAttentionArgs& a, int split) {
    if (const cudaError_t error = prepare()) return cudaGetErrorString(error);
    AttentionMaps maps;
    const HstuView none{a.q.at, a.q.row, a.q.user, a.q.head};
    // A map of nothing cannot be made; nothing is read through it either.
    const HstuView &k = a.keys > 0 ? a.k : none, &v = a.keys > 0 ? a.v : none;
    const int keys = a.keys > 0 ? a.keys : 1;
    bool isMapped = mapView(&maps.q, a.q, a.dqk, a.rows, a.heads, a.users, C::Rows) &&
                    mapView(&maps.k, k, a.dqk, keys, a.heads, a.users, kKeys) &&
                    mapView(&maps.v, v, a.dv, keys, a.heads, a.users, kKeys);
    if (Causal)
      isMapped = isMapped && mapView(&maps.ownK, a.ownK, a.dqk, a.rows, a.heads, a.users, kKeys) &&
                 mapView(&maps.ownV, a.ownV, a.dv, a.rows, a.heads, a.users, kKeys);
    if (!isMapped) return "q, k and v must begin at multiples of 16 bytes and have such strides";
    AttentionParams p{};
    p.q = a.q;
    p.ownK = a.ownK;
    p.ownV = a.ownV;
    p.out = static_cast<__half*>(a.out);
    p.outUser = int64_t(a.heads) * a.dv;
    p.outRow = p.outUser * a.users;
    p.heads = a.heads;
    p.dqk = a.dqk;
    p.dv = a.dv;
    p.rows = a.rows;
    p.keys = a.keys;
    p.positions = a.positions;
    p.lengths = a.lengths;
    p.times = a.times;
    p.queryTimes = a.queryTimes;
    p.posW = static_cast<const __half*>(a.posW);
    p.timeW = static_cast<const __half*>(a.timeW);
    p.halfAlpha = 0.5f * a.alpha;
    p.scale = a.scale;
    const unsigned blocks = (a.rows + C::Rows - 1) / C::Rows, heads = a.users * a.heads;
    const dim3 grid = Causal ? dim3(split, heads, blocks) : dim3(split, blocks, heads);
    const size_t sharedBytes = spreadBytes(int64_t(split) * blocks * heads, C::SharedBytes);
    return launchKernel(kernel, grid, kThreads, sharedBytes, split, a.stream, maps, p);
  }
};

template <bool Causal, bool Bias>
const char* run(const HstuAttentionArgs& a) {
  const AttentionShape shape{kWidth, a.rows, a.keys + (Causal ? a.rows : 0), a.users * a.heads, Causal, Bias};
  const auto slots = [](int warpgroups, int split) {
    if (warpgroups == 1) return Launcher<1, Causal, Bias>::slots(split);
    if constexpr (kWidth == 64 && !Bias)
      if (warpgroups == 3) return Launcher<3, Causal, Bias>::slots(split);
    return Launcher<2, Causal, Bias>::slots(split);
  };
  const AttentionPlan plan = planAttention(shape, slots, a.warpgroups, a.split);
  if (plan.warpgroups == 1) return Launcher<1, Causal, Bias>::launch(a, plan.split);
  if constexpr (kWidth == 64 && !Bias)
    if (plan.warpgroups == 3) return Launcher<3, Causal, Bias>::launch(a, plan.split);
  return Launcher<2, Causal, Bias>::launch(a, plan.split);
}

}  // namespace

template <>
const char* attentionOfWidth<kWidth>(const HstuAttentionArgs& a) {
  const bool hasBias = a.posW != nullptr;
  if (a.causal) return hasBias ? run<true, true>(a) : run<true, false>(a);
  return hasBias ? run<false, true>(a) : run<false, false>(a);
}

}  // namespace hstu
