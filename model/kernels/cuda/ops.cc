// ONNX Runtime's side of the kernels: custom ops of domain `peregrine`, named as the functions that the exporter writes
// (model/export/functions.ts), which say what each computes and what its inputs are. An op checks shapes, finds the
// tensors' views and launches; it allocates nothing and waits for nothing, so that it can be captured in a CUDA graph.
#include "custom-op.h"
#include "launch.h"
#include "plan.h"
#include <utility>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

using ort::Context;
using ort::kAny;
using ort::kFloat16;
using ort::kInt32;
using ort::kInt64;
using ort::Shape;
using ort::ShapeInference;
using ort::Tensor;

#ifdef PEREGRINE_HOST
constexpr const char* kProvider = "CPUExecutionProvider";
void* streamOf(const Context&) { return nullptr; }
#else
constexpr const char* kProvider = "CUDAExecutionProvider";
void* streamOf(const Context& context) { return context.stream(); }
#endif

void launched(const char* op, const char* failure) {
  if (failure != nullptr) throw ort::Failure(std::string(op) + ": " + failure);
}

void expect(bool isTrue, const char* op, const char* what) {
  if (!isTrue) throw ort::Failure(std::string(op) + " expects " + what);
}

const void* after(const void* at, int64_t halves) { return static_cast<const uint16_t*>(at) + halves; }

constexpr const char* kLinear = "HstuLinear";

/// (tokens, [users,] width) as tokens, users, width.
struct Tokens {
  int64_t tokens, users, width;
};

Tokens tokensOf(const Tensor& x, const char* op) {
  expect(x.dims.size() == 2 || x.dims.size() == 3, op, "tensors of (tokens, [users,] width)");
  const bool isBatched = x.dims.size() == 3;
  return {x.dims[0], isBatched ? x.dims[1] : 1, x.dims.back()};
}

/// What a layer's attention is told by attributes, and how uvqk is split.
struct Heads {
  int64_t count, dqk, dv;
  explicit Heads(const ort::Attributes& attributes)
      : count(attributes.integer("num_heads")),
        dqk(attributes.integer("head_dim_qk")),
        dv(attributes.integer("head_dim_v")) {
    expect(hstu::paddedWidth(int(dqk > dv ? dqk : dv)) != 0 && dqk % 8 == 0 && dv % 8 == 0, "attention",
           "heads of at most 256 columns, a multiple of 8");
  }
  int64_t width() const { return 2 * count * (dqk + dv); }
  HstuView part(const Tensor& x, int64_t offset, int64_t head) const {
    const bool isBatched = x.dims.size() == 3;
    const int64_t users = isBatched ? x.dims[1] : 1, columns = x.last();
    return {after(x.data, offset), users * columns, columns, head};
  }
  HstuView v(const Tensor& uvqk) const { return part(uvqk, count * dv, dv); }
  HstuView q(const Tensor& uvqk) const { return part(uvqk, 2 * count * dv, dqk); }
  HstuView k(const Tensor& uvqk) const { return part(uvqk, 2 * count * dv + count * dqk, dqk); }
};

struct AttentionKernel : ort::Kernel {
  Heads heads;
  float alpha, scale;
  explicit AttentionKernel(const ort::Attributes& attributes)
      : heads(attributes), alpha(attributes.number("alpha")), scale(attributes.number("scale")) {}

  /// What all three have in common.
  HstuAttentionArgs begin(const Context& context, const Tokens& rows, const char* op) const {
    expect(rows.width == heads.width(), op, "uvqk of 2·heads·(dqk + dv) columns");
    HstuAttentionArgs args{};
    const Tensor& uvqk = context.input(0);
    args.q = heads.q(uvqk);
    args.ownK = heads.k(uvqk);
    args.ownV = heads.v(uvqk);
    args.users = int32_t(rows.users);
    args.heads = int32_t(heads.count);
    args.dqk = int32_t(heads.dqk);
    args.dv = int32_t(heads.dv);
    args.rows = int32_t(rows.tokens);
    args.alpha = alpha;
    args.scale = scale;
    args.stream = streamOf(context);
    return args;
  }

  /// Writes into an output like uvqk, heads·dv wide.
  void finish(const Context& context, HstuAttentionArgs& args, const char* op) const {
    std::vector<int64_t> dims = context.input(0).dims;
    dims.back() = heads.count * heads.dv;
    args.out = context.output(dims);
    launched(op, hstuAttention(&args));
  }

  /// Input `i` and the next: the two tables of the relative bias.
  static void readTables(const Context& context, size_t i, HstuAttentionArgs& args, const char* op) {
    const Tensor &posW = context.input(i), &timeW = context.input(i + 1);
    expect(posW.type == kFloat16 && timeW.type == kFloat16 && timeW.last() == 128, op, "pos_w and time_w (128) behind the times");
    args.posW = posW.data;
    args.timeW = timeW.data;
    args.positions = int32_t(posW.last());
  }

  /// From input `i` on: [lengths, times] where there are users, [times, query_times, pos_w, time_w] with a relative bias.
  static void readCandidates(const Context& context, size_t i, HstuAttentionArgs& args, const char* op) {
    if (context.input(0).dims.size() == 3) {
      const Tensor& lengths = context.input(i++);
      expect(lengths.type == kInt64 && lengths.last() == args.users, op, "a length per user");
      args.lengths = static_cast<const int64_t*>(lengths.data);
    }
    if (i + 1 >= context.count()) return;
    const Tensor &times = context.input(i), &query = context.input(i + 1);
    expect(times.type == kInt64 && times.last() == args.keys && query.type == kInt64 && query.last() == args.users, op,
           "times of every key and a query time per user");
    args.times = static_cast<const int64_t*>(times.data);
    args.queryTimes = static_cast<const int64_t*>(query.data);
    readTables(context, i + 2, args, op);
  }
};

struct CandidatesKernel : AttentionKernel {
  using AttentionKernel::AttentionKernel;
  void compute(const Context& context) const override {
    constexpr const char* op = "HstuAttention";
    const Tensor &k = context.input(1), &v = context.input(2);
    const Tokens rows = tokensOf(context.input(0), op), keys = tokensOf(k, op);
    expect(keys.users == rows.users && keys.width == heads.count * heads.dqk && v.dims.size() == k.dims.size() &&
               v.dims[0] == keys.tokens && v.last() == heads.count * heads.dv,
           op, "k and v of the same tokens and users");
    HstuAttentionArgs args = begin(context, rows, op);
    args.k = heads.part(k, 0, heads.dqk);
    args.v = heads.part(v, 0, heads.dv);
    args.keys = int32_t(keys.tokens);
    readCandidates(context, 3, args, op);
    finish(context, args, op);
  }
};

struct PackedCandidatesKernel : AttentionKernel {
  using AttentionKernel::AttentionKernel;
  void compute(const Context& context) const override {
    constexpr const char* op = "HstuPackedAttention";
    const Tensor& history = context.input(1);
    const Tokens rows = tokensOf(context.input(0), op), keys = tokensOf(history, op);
    expect(keys.users == rows.users && keys.width == heads.width(), op, "a history as wide as uvqk");
    HstuAttentionArgs args = begin(context, rows, op);
    args.k = heads.k(history);
    args.v = heads.v(history);
    args.keys = int32_t(keys.tokens);
    readCandidates(context, 2, args, op);
    finish(context, args, op);
  }
};

struct CausalKernel : AttentionKernel {
  using AttentionKernel::AttentionKernel;
  void compute(const Context& context) const override {
    constexpr const char* op = "HstuCausalAttention";
    const Tokens rows = tokensOf(context.input(0), op);
    HstuAttentionArgs args = begin(context, rows, op);
    args.causal = 1;
    size_t i = 1;
    // Without past: (uvqk, times, new_times, …); with it: (uvqk, past_k, past_v, times, new_times, …).
    if (context.input(1).type == kFloat16) {
      const Tensor &k = context.input(1), &v = context.input(2);
      const Tokens past = tokensOf(k, op);
      expect(past.users == rows.users && past.width == heads.count * heads.dqk && v.last() == heads.count * heads.dv &&
                 v.dims[0] == past.tokens,
             op, "past k and v of the same tokens");
      args.k = heads.part(k, 0, heads.dqk);
      args.v = heads.part(v, 0, heads.dv);
      args.keys = int32_t(past.tokens);
      i = 3;
    }
    if (context.count() > i + 2) {
      const Tensor& times = context.input(i);
      expect(times.type == kInt64 && times.last() == args.keys + args.rows, op, "times of past and new tokens");
      args.times = static_cast<const int64_t*>(times.data);
      readTables(context, i + 2, args, op);
    }
    finish(context, args, op);
  }
};

/// (uvqk, a, [gamma, beta]); `Parts` = 2: (uvqk, a) of the history, of the candidates, [gamma, beta] -> two results.
template <size_t Parts>
struct GateKernel : ort::Kernel {
  int64_t act, concat, width;
  float epsilon;
  explicit GateKernel(const ort::Attributes& attributes)
      : act(attributes.integer("act")),
        concat(attributes.integer("concat")),
        width(attributes.integer("num_heads") * attributes.integer("head_dim_v")),
        epsilon(attributes.number("epsilon")) {}
  void compute(const Context& context) const override {
    constexpr const char* op = "HstuGate";
    const auto outputOf = [&](size_t part) {
      const Tensor &uvqk = context.input(2 * part), &a = context.input(2 * part + 1);
      expect(a.last() == width && uvqk.rows() == a.rows() && uvqk.last() >= width, op, "a of uvqk's rows, heads·dv wide");
      std::vector<int64_t> dims = a.dims;
      dims.back() = width * (concat ? 3 : 1);
      return context.output(dims, part);
    };
    HstuGateArgs args{};
    args.uvqk = context.input(0).data;
    args.a = context.input(1).data;
    args.out = outputOf(0);
    args.rows = context.input(1).rows();
    args.uvqkRow = context.input(0).last();
    if (Parts == 2) {
      args.uvqk2 = context.input(2).data;
      args.a2 = context.input(3).data;
      args.out2 = outputOf(1);
      args.rows2 = context.input(3).rows();
      expect(context.input(2).last() == args.uvqkRow, op, "two uvqk of the same width");
    }
    args.gamma = context.input(2 * Parts).data;
    args.beta = context.input(2 * Parts + 1).data;
    args.width = int32_t(width);
    args.act = int32_t(act);
    args.concat = int32_t(concat);
    args.epsilon = epsilon;
    args.stream = streamOf(context);
    launched(op, hstuGate(&args));
  }
};

/// (x, gamma, beta) -> norm; `Parts` = 2: (x, x, gamma, beta) -> norm, norm. With `Adds` (update, x, …) per part, gamma, beta,
/// [bias] -> (norm, sum) per part.
template <size_t Parts, bool Adds>
struct NormKernel : ort::Kernel {
  float epsilon;
  explicit NormKernel(const ort::Attributes& attributes) : epsilon(attributes.number("epsilon")) {}
  void compute(const Context& context) const override {
    constexpr const char* op = Adds ? "HstuAddNorm" : "HstuNorm";
    constexpr size_t kEach = Adds ? 2 : 1, kRest = Parts * kEach;
    const Tensor &gamma = context.input(kRest), &bias = context.input(kRest + 2);
    HstuNormArgs args{};
    args.gamma = gamma.data;
    args.beta = context.input(kRest + 1).data;
    if (Adds) args.bias = bias.data;
    expect(args.bias == nullptr || bias.last() == gamma.last(), op, "a bias of x's width");
    for (size_t part = 0; part < Parts; part++) {
      const Tensor& x = context.input(part * kEach + (Adds ? 1 : 0));
      expect(gamma.last() == x.last(), op, "gamma of x's width");
      const void* update = Adds ? context.input(part * kEach).data : nullptr;
      expect(!Adds || context.input(part * kEach).dims == x.dims, op, "an update like x");
      void* out = context.output(x.dims, part * kEach);
      void* sum = Adds ? context.output(x.dims, part * kEach + 1) : nullptr;
      (part ? args.x2 : args.x) = x.data;
      (part ? args.update2 : args.update) = update;
      (part ? args.out2 : args.out) = out;
      (part ? args.sum2 : args.sum) = sum;
      (part ? args.rows2 : args.rows) = x.rows();
    }
    args.width = int32_t(gamma.last());
    args.epsilon = epsilon;
    args.stream = streamOf(context);
    launched(op, hstuNorm(&args));
  }
};

/// What all linear layers have in common: w and bias behind `xs` inputs of rows.
template <bool HasBias, bool HasSilu>
HstuLinearArgs beginLinear(const Context& context, size_t xs, bool isConstant) {
  const Tensor &w = context.input(xs), &bias = context.input(xs + 1);
  expect(w.dims.size() == 2, kLinear, "w of (depth, width)");
  expect(!HasBias || bias.last() == w.last(), kLinear, "a bias per column");
  HstuLinearArgs args{};
  args.w = w.data;
  if (HasBias) args.bias = bias.data;
  args.depth = int32_t(w.dims[0]);
  args.width = int32_t(w.last());
  args.silu = HasSilu;
  args.isConstant = isConstant;
  args.stream = streamOf(context);
  return args;
}

/// Input `x` times some columns of w, as output `output`.
HstuLinearPart linearPart(const Context& context, const HstuLinearArgs& args, size_t x, size_t output, int64_t begin, int64_t end) {
  const Tensor& rows = context.input(x);
  expect(rows.last() == args.depth, kLinear, "x as wide as w is deep");
  std::vector<int64_t> dims = rows.dims;
  dims.back() = end - begin;
  return {rows.data, context.output(dims, output), rows.rows(), int32_t(begin), int32_t(end)};
}

/// (x, w, [bias]), or two x: what there is is said by the name, as a function cannot branch.
template <size_t Parts, bool HasBias, bool HasSilu>
struct LinearKernel : ort::Kernel {
  bool isConstant;
  explicit LinearKernel(const ort::Attributes& attributes) : isConstant(attributes.isConstant(Parts)) {}
  void compute(const Context& context) const override {
    HstuLinearArgs args = beginLinear<HasBias, HasSilu>(context, Parts, isConstant);
    for (size_t part = 0; part < Parts; part++) args.parts[part] = linearPart(context, args, part, part, 0, args.width);
    launched(kLinear, hstuLinear(&args));
  }
};

/// (history, candidates, w, [bias]) -> the history's k and v, the candidates' uvqk.
template <bool HasBias, bool HasSilu>
struct LastLinearKernel : ort::Kernel {
  Heads heads;
  bool isConstant;
  explicit LastLinearKernel(const ort::Attributes& attributes) : heads(attributes), isConstant(attributes.isConstant(2)) {}
  void compute(const Context& context) const override {
    HstuLinearArgs args = beginLinear<HasBias, HasSilu>(context, 2, isConstant);
    expect(args.width == heads.width(), kLinear, "w of 2·heads·(dqk + dv) columns");
    const int64_t k = heads.count * heads.dqk, v = heads.count * heads.dv;
    args.parts[0] = linearPart(context, args, 0, 0, args.width - k, args.width);
    args.parts[1] = linearPart(context, args, 0, 1, v, 2 * v);
    args.parts[2] = linearPart(context, args, 1, 2, 0, args.width);
    launched(kLinear, hstuLinear(&args));
  }
};

/// ([users,] tokens, …) as (tokens, [users,] …), and back.
template <class T>
void swapUsers(std::vector<T>& dims) {
  if (dims.size() == 3) std::swap(dims[0], dims[1]);
}

/// (table, ids), (table, ids, action, masks), or (table, ids, action, masks, candidates' ids), as many as `Inputs`; ids are
/// ([users,] tokens, slots). Rows of each are a result. With `Norms` gamma and beta come last, and each result is followed by its norm.
template <size_t Inputs, bool Norms>
struct EmbedKernel : ort::Kernel {
  float epsilon;
  explicit EmbedKernel(const ort::Attributes& attributes) : epsilon(Norms ? attributes.number("epsilon") : 0) {}
  void compute(const Context& context) const override {
    constexpr const char* op = "HstuEmbed";
    constexpr size_t kResults = Norms ? 2 : 1;
    const Tensor &table = context.input(0), &ids = context.input(1);
    const auto usersOf = [](const Tensor& x) { return x.dims.size() == 3 ? x.dims[0] : 1; };
    const auto outputOf = [&](const Tensor& x, size_t output) {
      expect(x.dims.size() == 2 || x.dims.size() == 3, op, "ids of ([users,] tokens, slots)");
      std::vector<int64_t> dims = x.dims;
      dims.back() = table.last();
      swapUsers(dims);
      return context.output(dims, output);
    };
    HstuEmbedArgs args{};
    args.table = table.data;
    args.ids = static_cast<const int32_t*>(ids.data);
    args.out = outputOf(ids, 0);
    if (Norms) args.norm = outputOf(ids, 1);
    args.rows = ids.rows();
    if (Inputs > 2) {
      const Tensor& action = context.input(2);
      args.action = action.data;
      args.actions = int32_t(action.dims[0]);
      args.masks = static_cast<const int32_t*>(context.input(3).data);
    }
    if (Inputs > 4) {
      const Tensor& candidates = context.input(4);
      expect(usersOf(candidates) == usersOf(ids) && candidates.last() == ids.last(), op, "candidates of the same users and slots");
      args.ids2 = static_cast<const int32_t*>(candidates.data);
      args.out2 = outputOf(candidates, kResults);
      if (Norms) args.norm2 = outputOf(candidates, kResults + 1);
      args.rows2 = candidates.rows();
    }
    if (Norms) {
      const Tensor& gamma = context.input(Inputs);
      expect(gamma.last() == table.last(), op, "gamma of the table's width");
      args.gamma = gamma.data;
      args.beta = context.input(Inputs + 1).data;
      args.epsilon = epsilon;
    }
    args.users = int32_t(usersOf(ids));
    args.slots = int32_t(ids.last());
    args.width = int32_t(table.last());
    args.stream = streamOf(context);
    launched(op, hstuEmbed(&args));
  }
};

/// (x, weight, bias); x is (tokens, [users,] depth).
struct LogitsKernel : ort::Kernel {
  explicit LogitsKernel(const ort::Attributes&) {}
  void compute(const Context& context) const override {
    constexpr const char* op = "HstuLogits";
    const Tensor &x = context.input(0), &w = context.input(1), &bias = context.input(2);
    const Tokens rows = tokensOf(x, op);
    expect(w.dims.size() == 2 && w.dims[0] == x.last() && bias.last() == w.last(), op, "w of (depth, tasks) and a bias per task");
    std::vector<int64_t> dims = x.dims;
    dims.back() = w.last();
    swapUsers(dims);
    const HstuLogitsArgs args{x.data, w.data, bias.data, static_cast<float*>(context.output(dims)), x.rows(), int32_t(rows.users),
                              int32_t(x.last()), int32_t(w.last()), streamOf(context)};
    launched(op, hstuLogits(&args));
  }
};

template <class K>
ort::Kernel* make(const ort::Attributes& attributes) {
  return new K(attributes);
}

/// Like input `i`, the last axis `width` long.
void likeInput(const ShapeInference& node, size_t i, int64_t width) {
  Shape shape = node.input(i);
  if (shape.dims.empty()) return;
  shape.dims.back() = width;
  shape.symbols.back() = "";
  node.setOutput(shape);
}

void inferAttention(const ShapeInference& node) { likeInput(node, 0, node.integer("num_heads") * node.integer("head_dim_v")); }

/// Like input `i`, as output `output`.
void inferLike(const ShapeInference& node, size_t i, size_t output, int64_t width = 0) {
  Shape shape = node.input(i);
  if (width > 0 && !shape.dims.empty()) {
    shape.dims.back() = width;
    shape.symbols.back() = "";
  }
  node.setOutput(shape, kFloat16, output);
}

template <size_t Parts>
void inferGate(const ShapeInference& node) {
  const int64_t width = node.integer("num_heads") * node.integer("head_dim_v") * (node.integer("concat") ? 3 : 1);
  for (size_t part = 0; part < Parts; part++) inferLike(node, 2 * part + 1, part, width);
}

template <size_t Parts, bool Adds>
void inferNorm(const ShapeInference& node) {
  for (size_t part = 0; part < Parts; part++) {
    if (!Adds) inferLike(node, part, part);
    if (Adds) inferLike(node, 2 * part + 1, 2 * part), inferLike(node, 2 * part + 1, 2 * part + 1);
  }
}

/// As wide as w's last axis.
template <size_t Parts>
void inferLinear(const ShapeInference& node) {
  const Shape w = node.input(Parts);
  for (size_t part = 0; !w.dims.empty() && part < Parts; part++) inferLike(node, part, part, w.dims.back());
}

void inferLastLinear(const ShapeInference& node) {
  const int64_t heads = node.integer("num_heads"), dqk = node.integer("head_dim_qk"), dv = node.integer("head_dim_v");
  inferLike(node, 0, 0, heads * dqk);
  inferLike(node, 0, 1, heads * dv);
  inferLike(node, 1, 2, 2 * heads * (dqk + dv));
}

/// As wide as the other input's last axis; the users' axis changes its place.
template <ort::Type Type>
void inferSwapped(const ShapeInference& node, size_t like, size_t wide, size_t output = 0) {
  const Shape other = node.input(wide);
  Shape shape = node.input(like);
  if (shape.dims.empty() || other.dims.empty()) return;
  shape.dims.back() = other.dims.back();
  shape.symbols.back() = "";
  swapUsers(shape.dims);
  swapUsers(shape.symbols);
  node.setOutput(shape, Type, output);
}

template <size_t Inputs, bool Norms>
void inferEmbed(const ShapeInference& node) {
  constexpr size_t kResults = Norms ? 2 : 1;
  for (size_t i = 0; i < kResults; i++) {
    inferSwapped<kFloat16>(node, 1, 0, i);
    if (Inputs > 4) inferSwapped<kFloat16>(node, 4, 0, kResults + i);
  }
}

void inferLogits(const ShapeInference& node) { inferSwapped<ort::kFloat>(node, 0, 1); }

constexpr ort::Input half{kFloat16, false}, maybeHalf{kFloat16, true}, maybeAny{kAny, true};

template <size_t Parts, bool HasBias, bool HasSilu>
ort::Op linearOp(const char* name) {
  std::vector<ort::Input> inputs(Parts + 1 + HasBias, half);
  return ort::Op(name, kProvider, inputs, make<LinearKernel<Parts, HasBias, HasSilu>>, inferLinear<Parts>, kFloat16, Parts);
}

template <size_t Inputs, bool Norms>
ort::Op embedOp(const char* name) {
  std::vector<ort::Input> inputs{half, {kInt32, false}, half, {kInt32, false}, {kInt32, false}};
  inputs.resize(Inputs);
  if (Norms) inputs.insert(inputs.end(), 2, half);
  return ort::Op(name, kProvider, inputs, make<EmbedKernel<Inputs, Norms>>, inferEmbed<Inputs, Norms>, kFloat16,
                 (Inputs > 4 ? 2 : 1) * (Norms ? 2 : 1));
}

template <bool HasBias, bool HasSilu>
ort::Op lastLinearOp(const char* name) {
  std::vector<ort::Input> inputs(3 + HasBias, half);
  return ort::Op(name, kProvider, inputs, make<LastLinearKernel<HasBias, HasSilu>>, inferLastLinear, kFloat16, 3);
}

}  // namespace

/// What an engine asks before it registers the library: null, or why it must not.
EXPORTED const char* PeregrineKernelsRefusal() { return nullptr; }

EXPORTED ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  static const ort::Op attention("HstuAttention", kProvider, {half, half, half, maybeAny, maybeAny, maybeAny, maybeAny, maybeAny},
                                 make<CandidatesKernel>, inferAttention);
  static const ort::Op packed("HstuPackedAttention", kProvider, {half, half, maybeAny, maybeAny, maybeAny, maybeAny, maybeAny},
                              make<PackedCandidatesKernel>, inferAttention);
  static const ort::Op causal("HstuCausalAttention", kProvider,
                              {half, {kAny, false}, {kAny, false}, maybeAny, maybeAny, maybeAny, maybeAny}, make<CausalKernel>,
                              inferAttention);
  static const ort::Op gate("HstuGate", kProvider, {half, half, maybeHalf, maybeHalf}, make<GateKernel<1>>, inferGate<1>);
  static const ort::Op gates("HstuGates", kProvider, {half, half, half, half, maybeHalf, maybeHalf}, make<GateKernel<2>>,
                             inferGate<2>, kFloat16, 2);
  static const ort::Op norm("HstuNorm", kProvider, {half, half, half}, make<NormKernel<1, false>>, inferNorm<1, false>);
  static const ort::Op norms("HstuNorms", kProvider, {half, half, half, half}, make<NormKernel<2, false>>, inferNorm<2, false>,
                             kFloat16, 2);
  static const ort::Op addNorm("HstuAddNorm", kProvider, {half, half, half, half, maybeHalf}, make<NormKernel<1, true>>,
                               inferNorm<1, true>, kFloat16, 2);
  static const ort::Op addNorms("HstuAddNorms", kProvider, {half, half, half, half, half, half, maybeHalf},
                                make<NormKernel<2, true>>, inferNorm<2, true>, kFloat16, 4);
  static const ort::Op embeds[] = {embedOp<2, false>("HstuEmbedItems"),   embedOp<2, true>("HstuEmbedItemsNorm"),
                                   embedOp<4, false>("HstuEmbedTokens"),  embedOp<4, true>("HstuEmbedTokensNorm"),
                                   embedOp<5, false>("HstuEmbedRequest"), embedOp<5, true>("HstuEmbedRequestNorm")};
  static const ort::Op logits("HstuLogits", kProvider, {half, half, half}, make<LogitsKernel>, inferLogits, ort::kFloat);
  static const ort::Op linears[] = {linearOp<1, false, false>("HstuLinear"),     linearOp<1, true, false>("HstuLinearBias"),
                                    linearOp<1, false, true>("HstuLinearSilu"),  linearOp<1, true, true>("HstuLinearBiasSilu"),
                                    linearOp<2, false, false>("HstuLinears"),    linearOp<2, true, false>("HstuLinearsBias"),
                                    linearOp<2, false, true>("HstuLinearsSilu"), linearOp<2, true, true>("HstuLinearsBiasSilu"),
                                    lastLinearOp<false, false>("HstuLastLinears"), lastLinearOp<true, false>("HstuLastLinearsBias"),
                                    lastLinearOp<false, true>("HstuLastLinearsSilu"),
                                    lastLinearOp<true, true>("HstuLastLinearsBiasSilu")};
  std::vector<const ort::Op*> ops{&attention, &packed, &causal, &gate, &gates, &norm, &norms, &addNorm, &addNorms, &logits};
  for (const ort::Op& embed : embeds) ops.push_back(&embed);
  for (const ort::Op& linear : linears) ops.push_back(&linear);
  return ort::addOps(options, base, ops);
}
