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
    const Tensor &uvqk = context.input(0), &a = context.input(1);
    expect(a.last() == width && uvqk.rows() == a.rows() && uvqk.last() >= width, op, "a of uvqk's rows, heads·dv wide");
    std::vector<int64_t> dims = a.dims;
    dims.back() = width * (concat ? 3 : 1);
    const HstuGateArgs args{uvqk.data, a.data, context.input(2).data, context.input(3).data, context.output(dims), a.rows(),
                            uvqk.last(), int32_t(width), int32_t(act), int32_t(concat), epsilon, streamOf(context)};
    launched(op, hstuGate(&args));
  }
};

struct NormKernel : ort::Kernel {
  float epsilon;
  explicit NormKernel(const ort::Attributes& attributes) : epsilon(attributes.number("epsilon")) {}
  void compute(const Context& context) const override {
    const Tensor& x = context.input(0);
    const HstuNormArgs args{x.data, context.input(1).data, context.input(2).data, nullptr, nullptr, context.output(x.dims),
                            nullptr, x.rows(), int32_t(x.last()), epsilon, streamOf(context)};
    launched("HstuNorm", hstuNorm(&args));
  }
};

/// (update, x, gamma, beta, [bias]) -> norm, sum.
struct AddNormKernel : ort::Kernel {
  float epsilon;
  explicit AddNormKernel(const ort::Attributes& attributes) : epsilon(attributes.number("epsilon")) {}
  void compute(const Context& context) const override {
    constexpr const char* op = "HstuAddNorm";
    const Tensor &update = context.input(0), &x = context.input(1), &gamma = context.input(2), &bias = context.input(4);
    expect(update.dims == x.dims && gamma.last() == x.last(), op, "an update like x and gamma of its width");
    expect(bias.data == nullptr || bias.last() == x.last(), op, "a bias of x's width");
    const HstuNormArgs args{x.data, gamma.data, context.input(3).data, update.data, bias.data, context.output(x.dims),
                            context.output(x.dims, 1), x.rows(), int32_t(x.last()), epsilon, streamOf(context)};
    launched(op, hstuNorm(&args));
  }
};

/// (x, w, [bias]): what there is is said by the name, as a function cannot branch.
template <bool HasBias, bool HasSilu>
struct LinearKernel : ort::Kernel {
  explicit LinearKernel(const ort::Attributes&) {}
  void compute(const Context& context) const override {
    constexpr const char* op = "HstuLinear";
    const Tensor &x = context.input(0), &w = context.input(1), &bias = context.input(2);
    expect(w.dims.size() == 2 && w.dims[0] == x.last(), op, "w of (depth, width)");
    expect(!HasBias || bias.last() == w.last(), op, "a bias per column");
    std::vector<int64_t> dims = x.dims;
    dims.back() = w.last();
    const HstuLinearArgs args{x.data, w.data, bias.data, context.output(dims), x.rows(), int32_t(x.last()), int32_t(w.last()),
                              HasSilu, 0, 0, streamOf(context)};
    launched(op, hstuLinear(&args));
  }
};

/// ([users,] tokens, …) as (tokens, [users,] …), and back.
template <class T>
void swapUsers(std::vector<T>& dims) {
  if (dims.size() == 3) std::swap(dims[0], dims[1]);
}

/// (table, ids) or (table, ids, action, masks); ids are ([users,] tokens, slots).
struct EmbedKernel : ort::Kernel {
  explicit EmbedKernel(const ort::Attributes&) {}
  void compute(const Context& context) const override {
    const Tensor &table = context.input(0), &ids = context.input(1), &action = context.input(2), &masks = context.input(3);
    expect(ids.dims.size() == 2 || ids.dims.size() == 3, "HstuEmbed", "ids of ([users,] tokens, slots)");
    const int64_t users = ids.dims.size() == 3 ? ids.dims[0] : 1;
    std::vector<int64_t> dims = ids.dims;
    dims.back() = table.last();
    swapUsers(dims);
    const HstuEmbedArgs args{table.data, static_cast<const int32_t*>(ids.data), static_cast<const int32_t*>(masks.data),
                             action.data, context.output(dims), ids.rows(), int32_t(users), int32_t(ids.last()),
                             int32_t(table.last()), action.data == nullptr ? 0 : int32_t(action.dims[0]), streamOf(context)};
    launched("HstuEmbed", hstuEmbed(&args));
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

void inferGate(const ShapeInference& node) {
  likeInput(node, 1, node.integer("num_heads") * node.integer("head_dim_v") * (node.integer("concat") ? 3 : 1));
}

void inferNorm(const ShapeInference& node) { node.setOutput(node.input(0)); }

void inferAddNorm(const ShapeInference& node) {
  inferNorm(node);
  node.setOutput(node.input(0), kFloat16, 1);
}

/// As wide as the other input's last axis.
template <size_t Like, size_t Wide>
void inferWidth(const ShapeInference& node) {
  const Shape other = node.input(Wide);
  if (!other.dims.empty()) likeInput(node, Like, other.dims.back());
}

/// The same where the users' axis changes its place.
template <size_t Like, size_t Wide, ort::Type Type>
void inferSwapped(const ShapeInference& node) {
  const Shape other = node.input(Wide);
  Shape shape = node.input(Like);
  if (shape.dims.empty() || other.dims.empty()) return;
  shape.dims.back() = other.dims.back();
  shape.symbols.back() = "";
  swapUsers(shape.dims);
  swapUsers(shape.symbols);
  node.setOutput(shape, Type);
}

constexpr ort::Input half{kFloat16, false}, maybeHalf{kFloat16, true}, maybeAny{kAny, true};

template <bool HasBias, bool HasSilu>
ort::Op linearOp(const char* name) {
  std::vector<ort::Input> inputs{half, half};
  if (HasBias) inputs.push_back(half);
  return ort::Op(name, kProvider, inputs, make<LinearKernel<HasBias, HasSilu>>, inferWidth<0, 1>);
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
  static const ort::Op gate("HstuGate", kProvider, {half, half, maybeHalf, maybeHalf}, make<GateKernel>, inferGate);
  static const ort::Op norm("HstuNorm", kProvider, {half, half, half}, make<NormKernel>, inferNorm);
  static const ort::Op addNorm("HstuAddNorm", kProvider, {half, half, half, half, maybeHalf}, make<AddNormKernel>, inferAddNorm,
                               kFloat16, 2);
  static const ort::Op embedItems("HstuEmbedItems", kProvider, {half, {kInt32, false}}, make<EmbedKernel>,
                                  inferSwapped<1, 0, kFloat16>);
  static const ort::Op embedTokens("HstuEmbedTokens", kProvider, {half, {kInt32, false}, half, {kInt32, false}},
                                   make<EmbedKernel>, inferSwapped<1, 0, kFloat16>);
  static const ort::Op logits("HstuLogits", kProvider, {half, half, half}, make<LogitsKernel>, inferSwapped<0, 1, ort::kFloat>,
                              ort::kFloat);
  static const ort::Op linears[] = {linearOp<false, false>("HstuLinear"), linearOp<true, false>("HstuLinearBias"),
                                    linearOp<false, true>("HstuLinearSilu"), linearOp<true, true>("HstuLinearBiasSilu")};
  std::vector<const ort::Op*> ops{&attention, &packed, &causal, &gate, &norm, &addNorm, &embedItems, &embedTokens, &logits};
  for (const ort::Op& linear : linears) ops.push_back(&linear);
  return ort::addOps(options, base, ops);
}
