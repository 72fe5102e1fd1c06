// The part of ONNX Runtime's C ABI (onnxruntime_c_api.h) that a library of custom ops needs, declared by place: struct
// OrtApi and struct OrtCustomOp only grow at their ends, so an entry's index stays.
#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace ort {

struct Status;  // null is success
struct Value;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct TensorInfo;
struct SessionOptions;
struct Domain;
struct Attribute;

using Api = void* const*;

struct ApiBase {
  Api (*getApi)(uint32_t version);
  const char* (*getVersion)();
};

/// The oldest release whose entries are all there: shape inference of custom ops came with 1.17.
constexpr uint32_t kApiVersion = 17;

enum Type { kAny = 0, kFloat = 1, kInt32 = 6, kInt64 = 7, kFloat16 = 10 };

/// OrtApi's entries by index.
enum Entry {
  kCreateStatus = 0,
  kCreateDomain = 26,
  kDomainAdd = 27,
  kAddDomain = 28,
  kGetData = 51,
  kCreateTensorInfo = 57,
  kSetElementType = 58,
  kSetDims = 59,
  kGetElementType = 60,
  kGetRank = 61,
  kGetDims = 62,
  kGetSymbols = 63,
  kGetTensorInfo = 65,
  kAttributeFloat = 85,
  kAttributeInt = 86,
  kInputCount = 88,
  kInput = 90,
  kOutput = 91,
  kReleaseTensorInfo = 99,
  kComputeStream = 193,
  kConstantInput = 249,
  kShapeInputCount = 267,
  kShapeInput = 268,
  kShapeAttribute = 269,
  kSetOutputShape = 270,
  kSetSymbols = 271,
  kReadAttribute = 272,
};

/// A failed call of ONNX Runtime's, or a complaint of an op; becomes the status that the op answers.
struct Failure : std::exception {
  explicit Failure(std::string text) : message(std::move(text)) {}
  explicit Failure(Status* failed) : status(failed) {}
  const char* what() const noexcept override { return message.c_str(); }
  std::string message;
  Status* status = nullptr;
};

inline Api entries = nullptr;

template <class... Args>
Status* raw(Entry entry, Args... args) {
  return reinterpret_cast<Status* (*)(Args...)>(entries[entry])(args...);
}

template <class... Args>
void call(Entry entry, Args... args) {
  if (Status* status = raw(entry, args...)) throw Failure(status);
}

inline Status* statusOf(const Failure& failure) {
  constexpr int kFail = 1;
  return failure.status != nullptr ? failure.status : raw(kCreateStatus, kFail, failure.message.c_str());
}

template <class Work>
Status* guarded(const Work& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return statusOf(failure);
  } catch (const std::exception& error) {
    return statusOf(Failure(error.what()));
  }
}

/// A tensor's length by axis: a number, or a name for what is known at run time.
struct Shape {
  std::vector<int64_t> dims;
  std::vector<const char*> symbols;
};

inline Shape shapeOf(const TensorInfo* info) {
  size_t rank = 0;
  call(kGetRank, info, &rank);
  Shape shape{std::vector<int64_t>(rank), std::vector<const char*>(rank, "")};
  call(kGetDims, info, shape.dims.data(), rank);
  call(kGetSymbols, info, shape.symbols.data(), rank);
  return shape;
}

struct Tensor {
  const void* data = nullptr;
  int type = kAny;
  std::vector<int64_t> dims;

  int64_t last() const { return dims.empty() ? 1 : dims.back(); }
  /// Elements in front of the last axis.
  int64_t rows() const {
    int64_t product = 1;
    for (size_t i = 0; i + 1 < dims.size(); i++) product *= dims[i];
    return product;
  }
};

inline void* dataOf(Value* value) {
  void* data = nullptr;
  call(kGetData, value, &data);
  return data;
}

/// One computation of a node.
class Context {
 public:
  explicit Context(KernelContext* context) : context_(context) {
    size_t count = 0;
    call(kInputCount, static_cast<const KernelContext*>(context), &count);
    for (size_t i = 0; i < count; i++) inputs_.push_back(read(i));
  }
  size_t count() const { return inputs_.size(); }
  /// One without data where the node leaves it out.
  const Tensor& input(size_t i) const {
    static const Tensor none;
    return i < inputs_.size() ? inputs_[i] : none;
  }
  void* output(const std::vector<int64_t>& dims, size_t i = 0) const {
    Value* value = nullptr;
    call(kOutput, context_, i, dims.data(), dims.size(), &value);
    return dataOf(value);
  }
  /// The CUDA stream of the run.
  void* stream() const {
    void* stream = nullptr;
    call(kComputeStream, static_cast<const KernelContext*>(context_), &stream);
    return stream;
  }

 private:
  Tensor read(size_t i) const {
    const Value* value = nullptr;
    call(kInput, static_cast<const KernelContext*>(context_), i, &value);
    Tensor tensor;
    if (value == nullptr) return tensor;
    TensorInfo* info = nullptr;
    call(kGetTensorInfo, value, &info);
    Status* failed = raw(kGetElementType, static_cast<const TensorInfo*>(info), &tensor.type);
    size_t rank = 0;
    if (failed == nullptr) failed = raw(kGetRank, static_cast<const TensorInfo*>(info), &rank);
    tensor.dims.resize(rank);
    if (failed == nullptr) failed = raw(kGetDims, static_cast<const TensorInfo*>(info), tensor.dims.data(), rank);
    reinterpret_cast<void (*)(TensorInfo*)>(entries[kReleaseTensorInfo])(info);
    if (failed != nullptr) throw Failure(failed);
    tensor.data = dataOf(const_cast<Value*>(value));
    return tensor;
  }
  KernelContext* context_;
  std::vector<Tensor> inputs_;
};

/// A node's attributes, when its kernel is made.
class Attributes {
 public:
  explicit Attributes(const KernelInfo* info) : info_(info) {}
  float number(const char* name) const {
    float value = 0;
    call(kAttributeFloat, info_, name, &value);
    return value;
  }
  int64_t integer(const char* name) const {
    int64_t value = 0;
    call(kAttributeInt, info_, name, &value);
    return value;
  }
  /// Whether input `i` is an initializer of the graph, which no run writes.
  bool isConstant(size_t i) const {
    int is = 0;
    const Value* value = nullptr;
    call(kConstantInput, info_, i, &is, &value);
    return is != 0;
  }

 private:
  const KernelInfo* info_;
};

/// A node whose output shape ONNX Runtime asks for before any run: what is fused around the node depends on it.
class ShapeInference {
 public:
  explicit ShapeInference(ShapeContext* context) : context_(context) {}
  Shape input(size_t i) const {
    size_t count = 0;
    call(kShapeInputCount, static_cast<const ShapeContext*>(context_), &count);
    if (i >= count) return {};
    TensorInfo* info = nullptr;
    call(kShapeInput, static_cast<const ShapeContext*>(context_), i, &info);
    return shapeOf(info);
  }
  int64_t integer(const char* name) const {
    constexpr int kInt = 1;
    const Attribute* attribute = nullptr;
    call(kShapeAttribute, static_cast<const ShapeContext*>(context_), name, &attribute);
    int64_t value = 0;
    size_t bytes = 0;
    call(kReadAttribute, attribute, kInt, static_cast<void*>(&value), sizeof value, &bytes);
    return value;
  }
  /// Says nothing where an axis has neither number nor name.
  void setOutput(Shape shape, Type type = kFloat16, size_t i = 0) const {
    if (shape.dims.empty()) return;
    for (size_t axis = 0; axis < shape.dims.size(); axis++) {
      if (shape.symbols[axis] == nullptr) shape.symbols[axis] = "";
      if (shape.dims[axis] < 0 && *shape.symbols[axis] == 0) return;
    }
    TensorInfo* info = nullptr;
    call(kCreateTensorInfo, &info);
    Status* failed = raw(kSetElementType, info, int(type));
    if (failed == nullptr) failed = raw(kSetDims, info, shape.dims.data(), shape.dims.size());
    if (failed == nullptr) failed = raw(kSetSymbols, info, shape.symbols.data(), shape.symbols.size());
    if (failed == nullptr) failed = raw(kSetOutputShape, static_cast<const ShapeContext*>(context_), i, static_cast<const TensorInfo*>(info));
    reinterpret_cast<void (*)(TensorInfo*)>(entries[kReleaseTensorInfo])(info);
    if (failed != nullptr) throw Failure(failed);
  }

 private:
  ShapeContext* context_;
};

/// What one node keeps: its attributes. Several runs may compute at once.
struct Kernel {
  virtual ~Kernel() = default;
  virtual void compute(const Context& context) const = 0;
};

struct Input {
  Type type;
  bool isOptional;
};

/// struct OrtCustomOp: its functions get the op itself as their first argument.
struct Op {
  uint32_t version = kApiVersion;  ///< of this struct: what came later is not looked at
  void* (*createKernelOld)(const Op*, Api, const KernelInfo*) = nullptr;
  const char* (*getName)(const Op*) = [](const Op* op) { return op->name; };
  const char* (*getProvider)(const Op*) = [](const Op* op) { return op->provider; };
  int (*getInputType)(const Op*, size_t) = [](const Op* op, size_t i) { return int(op->inputs[i].type); };
  size_t (*getInputTypeCount)(const Op*) = [](const Op* op) { return op->inputs.size(); };
  int (*getOutputType)(const Op*, size_t) = [](const Op* op, size_t) { return int(op->outputType); };
  size_t (*getOutputTypeCount)(const Op*) = [](const Op* op) { return op->outputs; };
  void (*computeOld)(void*, KernelContext*) = nullptr;
  void (*destroy)(void*) = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  int (*getInputCharacteristic)(const Op*, size_t) = [](const Op* op, size_t i) { return int(op->inputs[i].isOptional); };
  int (*getOutputCharacteristic)(const Op*, size_t) = [](const Op*, size_t) { return 0; };
  int (*getInputMemoryType)(const Op*, size_t) = [](const Op*, size_t) { return 0; };
  int (*getVariadicInputMinArity)(const Op*) = [](const Op*) { return 1; };
  int (*getVariadicInputHomogeneity)(const Op*) = [](const Op*) { return 1; };
  int (*getVariadicOutputMinArity)(const Op*) = [](const Op*) { return 1; };
  int (*getVariadicOutputHomogeneity)(const Op*) = [](const Op*) { return 1; };
  Status* (*createKernel)(const Op*, Api, const KernelInfo*, void**) = [](const Op* op, Api, const KernelInfo* info, void** kernel) {
    return guarded([&] { *kernel = op->make(Attributes(info)); });
  };
  Status* (*compute)(void*, KernelContext*) = [](void* kernel, KernelContext* context) {
    return guarded([&] { static_cast<const Kernel*>(kernel)->compute(Context(context)); });
  };
  Status* (*inferShape)(const Op*, ShapeContext*) = [](const Op* op, ShapeContext* context) {
    return guarded([&] { op->infer(ShapeInference(context)); });
  };
  int (*getStartVersion)(const Op*) = [](const Op*) { return 1; };
  int (*getEndVersion)(const Op*) = [](const Op*) { return INT32_MAX; };
  void* later[4] = {};

  // Our own, behind what ONNX Runtime knows of.
  const char* name;
  const char* provider;
  std::vector<Input> inputs;
  Kernel* (*make)(const Attributes&);
  void (*infer)(const ShapeInference&);
  Type outputType;
  size_t outputs;

  Op(const char* opName, const char* opProvider, std::vector<Input> opInputs, Kernel* (*makeKernel)(const Attributes&),
     void (*inferOutput)(const ShapeInference&), Type type = kFloat16, size_t outputCount = 1)
      : name(opName),
        provider(opProvider),
        inputs(std::move(opInputs)),
        make(makeKernel),
        infer(inferOutput),
        outputType(type),
        outputs(outputCount) {}
};

/// Adds ops of domain `peregrine` to a session that is about to be made; they live as long as the library.
inline Status* addOps(SessionOptions* options, const ApiBase* base, const std::vector<const Op*>& ops) {
  entries = base->getApi(kApiVersion);
  if (entries == nullptr) {
    entries = base->getApi(1);
    return statusOf(Failure(std::string("the kernels need ONNX Runtime 1.17 or later, got ") + base->getVersion()));
  }
  static Domain* domain = nullptr;
  if (domain == nullptr) {
    Domain* made = nullptr;
    if (Status* status = raw(kCreateDomain, "peregrine", &made)) return status;
    for (const Op* op : ops)
      if (Status* status = raw(kDomainAdd, made, op)) return status;
    domain = made;
  }
  return raw(kAddDomain, options, domain);
}

}  // namespace ort
