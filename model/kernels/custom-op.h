// The part of ONNX Runtime's C ABI (onnxruntime_c_api.h) that a library of custom ops needs, declared
// by place instead of copied: struct OrtApi only ever grows at its end, so an entry's index stays.
#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

namespace peregrine {

struct Status;      // OrtStatus; null is success
struct Value;       // OrtValue
struct Info;        // OrtKernelInfo
struct RawContext;  // OrtKernelContext
struct Options;     // OrtSessionOptions
struct Domain;      // OrtCustomOpDomain
struct MemoryInfo;
struct Allocator;
struct ShapeInfo;

/** The oldest release whose entries are all there: 1.18 brought the last one used here. */
constexpr uint32_t API_VERSION = 18;

/** OrtApi as the list of functions that it is. */
using Api = void* const*;

struct ApiBase {
  Api (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

enum ElementType { ANY = 0, FLOAT = 1, UINT16 = 4, INT32 = 6, INT64 = 7, FLOAT16 = 10, BFLOAT16 = 16 };
enum Characteristic { REQUIRED = 0, OPTIONAL = 1 };
enum ErrorCode { FAIL = 1, INVALID_ARGUMENT = 2 };

/** A failed call of ONNX Runtime's, or our own complaint; becomes the status that a kernel answers. */
struct Failure : std::exception {
  Failure(ErrorCode code, std::string message) : code(code), message(std::move(message)) {}
  explicit Failure(Status* status) : status(status) {}
  const char* what() const noexcept override { return message.c_str(); }
  ErrorCode code = FAIL;
  std::string message;
  Status* status = nullptr;
};

/** Calls entries of OrtApi by index. */
class Ort {
 public:
  static void init(Api api) { entries_ = api; }

  template <class... A>
  static Status* raw(int index, A... args) {
    return reinterpret_cast<Status* (*)(A...)>(entries_[index])(args...);
  }
  /** @throws Failure */
  template <class... A>
  static void call(int index, A... args) {
    if (Status* status = raw(index, args...)) throw Failure(status);
  }
  template <class T>
  static void release(int index, T* object) {
    reinterpret_cast<void (*)(T*)>(entries_[index])(object);
  }
  static Status* toStatus(const Failure& failure) {
    if (failure.status != nullptr) return failure.status;
    return raw(0, static_cast<int>(failure.code), failure.message.c_str());  // CreateStatus
  }

 private:
  static inline Api entries_ = nullptr;
};

/** A tensor as a kernel sees it; `data` is null where an optional input was left out. */
struct Tensor {
  const void* data = nullptr;
  bool present = false;
  int type = ANY;
  std::vector<int64_t> dims;

  const float* floats() const { return static_cast<const float*>(data); }
  const int64_t* longs() const { return static_cast<const int64_t*>(data); }
  int rank() const { return static_cast<int>(dims.size()); }
  int64_t last() const { return dims.empty() ? 1 : dims.back(); }
  int64_t size() const {
    int64_t product = 1;
    for (int64_t dim : dims) product *= dim;
    return product;
  }
};

inline Tensor describe(const Value* value) {
  Tensor tensor;
  if (value == nullptr) return tensor;
  tensor.present = true;
  ShapeInfo* info = nullptr;
  Ort::call(65, value, &info);  // GetTensorTypeAndShape
  size_t rank = 0;
  Ort::call(60, static_cast<const ShapeInfo*>(info), &tensor.type);  // GetTensorElementType
  Ort::call(61, static_cast<const ShapeInfo*>(info), &rank);         // GetDimensionsCount
  tensor.dims.resize(rank);
  Ort::call(62, static_cast<const ShapeInfo*>(info), tensor.dims.data(), rank);  // GetDimensions
  Ort::release(99, info);
  void* data = nullptr;
  Ort::call(51, const_cast<Value*>(value), &data);  // GetTensorMutableData
  tensor.data = data;
  return tensor;
}

/** What a kernel can ask for while it computes. */
class Context {
 public:
  explicit Context(RawContext* raw) : raw_(raw) {}

  Tensor input(size_t i) const {
    size_t count = 0;
    Ort::call(88, static_cast<const RawContext*>(raw_), &count);  // KernelContext_GetInputCount
    if (i >= count) return {};
    const Value* value = nullptr;
    Ort::call(90, static_cast<const RawContext*>(raw_), i, &value);  // KernelContext_GetInput
    return describe(value);
  }

  template <class T = float>
  T* output(const std::vector<int64_t>& dims) {
    Value* value = nullptr;
    Ort::call(91, raw_, size_t{0}, dims.data(), dims.size(), &value);  // KernelContext_GetOutput
    void* data = nullptr;
    Ort::call(51, value, &data);
    return static_cast<T*>(data);
  }

  /** Runs work(i) for every i below `count` on the session's own threads; `work` must not throw. */
  template <class Work>
  void parallelFor(int64_t count, const Work& work) const {
    if (count <= 0) return;
    if (count == 1) return work(int64_t{0});
    auto one = [](void* data, size_t i) {
      (*static_cast<const Work*>(data))(static_cast<int64_t>(i));
    };
    void (*function)(void*, size_t) = one;
    // KernelContext_ParallelFor. As many batches as there is work: a core that others keep busy
    // then takes less of it.
    Ort::call(274, static_cast<const RawContext*>(raw_), function, static_cast<size_t>(count),
              static_cast<size_t>(count), const_cast<void*>(static_cast<const void*>(&work)));
  }

  RawContext* raw() const { return raw_; }

 private:
  RawContext* raw_;
};

/** Memory of the session's own arena, for one call of a kernel. */
class Scratch {
 public:
  explicit Scratch(Context& context) {
    Ort::call(69, /* OrtArenaAllocator */ 1, /* OrtMemTypeDefault */ 0, &info_);  // CreateCpuMemoryInfo
    if (Status* status = Ort::raw(253, static_cast<const RawContext*>(context.raw()),
                                  static_cast<const MemoryInfo*>(info_), &allocator_)) {
      Ort::release(94, info_);
      throw Failure(status);
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    for (void* block : blocks_) Ort::raw(76, allocator_, block);  // AllocatorFree
    Ort::release(132, allocator_);
    Ort::release(94, info_);
  }

  /** `count` items at an address that is a multiple of 64. */
  template <class T>
  T* take(size_t count) {
    void* block = nullptr;
    Ort::call(75, allocator_, count * sizeof(T) + 64, &block);  // AllocatorAlloc
    blocks_.push_back(block);
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(block) + 63) & ~uintptr_t{63});
  }

 private:
  MemoryInfo* info_ = nullptr;
  Allocator* allocator_ = nullptr;
  std::vector<void*> blocks_;
};

/** A node's attributes and constant inputs, when its kernel is made. */
class NodeInfo {
 public:
  explicit NodeInfo(const Info* info) : info_(info) {}
  float number(const char* name) const {
    float value = 0;
    Ort::call(85, info_, name, &value);  // KernelInfoGetAttribute_float
    return value;
  }
  int64_t integer(const char* name) const {
    int64_t value = 0;
    Ort::call(86, info_, name, &value);  // KernelInfoGetAttribute_int64
    return value;
  }
  /** An input that never changes, else one that is not present. */
  Tensor constant(size_t i) const {
    int isConstant = 0;
    const Value* value = nullptr;
    Ort::call(249, info_, i, &isConstant, &value);  // KernelInfoGetConstantInput_tensor
    return isConstant ? describe(value) : Tensor{};
  }

 private:
  const Info* info_;
};

/** One node of one session. Several runs may compute at once. */
struct Kernel {
  virtual ~Kernel() = default;
  virtual void compute(Context& context) const = 0;
};

struct Input {
  ElementType type;
  Characteristic characteristic;
};

/** struct OrtCustomOp: its functions get the op itself as their first argument. */
struct Op {
  uint32_t version = 17;  // of this struct: what came later is not looked at
  void* (*createKernelV1)(const Op*, Api, const Info*) = nullptr;
  const char* (*getName)(const Op*) = [](const Op* op) { return op->name; };
  const char* (*getProvider)(const Op*) = [](const Op* op) { return op->provider; };
  int (*getInputType)(const Op*, size_t) = [](const Op* op, size_t i) -> int {
    return op->inputs[i].type;
  };
  size_t (*getInputTypeCount)(const Op*) = [](const Op* op) { return op->inputs.size(); };
  int (*getOutputType)(const Op*, size_t) = [](const Op* op, size_t) -> int { return op->output; };
  size_t (*getOutputTypeCount)(const Op*) = [](const Op*) -> size_t { return 1; };
  void (*computeV1)(void*, RawContext*) = nullptr;
  void (*destroy)(void*) = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  int (*getInputCharacteristic)(const Op*, size_t) = [](const Op* op, size_t i) -> int {
    return op->inputs[i].characteristic;
  };
  int (*getOutputCharacteristic)(const Op*, size_t) = [](const Op*, size_t) -> int {
    return REQUIRED;
  };
  int (*getInputMemoryType)(const Op*, size_t) = [](const Op*, size_t) -> int { return 0; };
  int (*getVariadicInputMinArity)(const Op*) = [](const Op*) { return 1; };
  int (*getVariadicInputHomogeneity)(const Op*) = [](const Op*) { return 1; };
  int (*getVariadicOutputMinArity)(const Op*) = [](const Op*) { return 1; };
  int (*getVariadicOutputHomogeneity)(const Op*) = [](const Op*) { return 1; };
  Status* (*createKernel)(const Op*, Api, const Info*, void**) = [](const Op* op, Api, const Info* info,
                                                                    void** kernel) -> Status* {
    return guarded([&] { *kernel = op->make(NodeInfo(info), *op); });
  };
  Status* (*compute)(void*, RawContext*) = [](void* kernel, RawContext* raw) -> Status* {
    return guarded([&] {
      Context context(raw);
      static_cast<const Kernel*>(kernel)->compute(context);
    });
  };
  Status* (*inferOutputShape)(const Op*, void*) = nullptr;
  int (*getStartVersion)(const Op*) = [](const Op*) { return 1; };
  int (*getEndVersion)(const Op*) = [](const Op*) { return INT32_MAX; };
  size_t (*getMayInplace)(int**, int**) = nullptr;
  void (*releaseMayInplace)(int*, int*) = nullptr;
  size_t (*getAliasMap)(int**, int**) = nullptr;
  void (*releaseAliasMap)(int*, int*) = nullptr;

  // Our own, behind what ONNX Runtime knows of.
  const char* name;
  const char* provider;
  std::vector<Input> inputs;
  Kernel* (*make)(const NodeInfo&, const Op&);
  ElementType output;

  Op(const char* name, const char* provider, std::vector<Input> inputs,
     Kernel* (*make)(const NodeInfo&, const Op&), ElementType output = FLOAT)
      : name(name), provider(provider), inputs(std::move(inputs)), make(make), output(output) {}

 private:
  template <class Work>
  static Status* guarded(const Work& work) noexcept {
    try {
      work();
      return nullptr;
    } catch (const Failure& failure) {
      return Ort::toStatus(failure);
    } catch (const std::exception& error) {
      return Ort::toStatus(Failure(FAIL, error.what()));
    }
  }
};

/**
 * Adds ops of domain `peregrine` to a session that is about to be made. Ops and domain are the
 * caller's and live as long as the library.
 */
inline Status* addOps(Options* options, const ApiBase* base, Domain** domain,
                      const std::vector<const Op*>& ops) {
  const Api api = base->GetApi(API_VERSION);
  if (api == nullptr) {
    const Api oldest = base->GetApi(1);
    Ort::init(oldest);
    return Ort::toStatus(Failure(FAIL, std::string("kernels need ONNX Runtime 1.18 or later, got ") +
                                           base->GetVersionString()));
  }
  Ort::init(api);
  if (*domain == nullptr) {
    if (Status* status = Ort::raw(26, "peregrine", domain)) return status;  // CreateCustomOpDomain
    for (const Op* op : ops) {
      if (Status* status = Ort::raw(27, *domain, op)) return status;  // CustomOpDomain_Add
    }
  }
  return Ort::raw(28, options, *domain);  // AddCustomOpDomain
}

inline void expect(bool condition, const char* op, const std::string& what) {
  if (!condition) throw Failure(INVALID_ARGUMENT, std::string(op) + " expects " + what);
}

}  // namespace peregrine
