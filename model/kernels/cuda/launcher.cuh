// How the library launches its kernels: each may start while the one before it in the stream ends (programmatic dependent
// launch), and so begins with `waitForBefore` (hopper.cuh), in front of all that it reads or writes in device memory. A kernel that waits so
// ends after all that came before it, whoever launched that.
#pragma once
#include <cuda_runtime.h>
#include <algorithm>
#include <cstdint>

namespace hstu {

/// `cluster`: CTAs along x that form one, 0 for none. Null, or what CUDA says.
template <class... Parameters, class... Arguments>
const char* launchKernel(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t sharedBytes, unsigned cluster,
                         void* stream, const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = sharedBytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = cluster ? 2 : 1;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline int multiprocessors() {
  static const int count = [] {
    int device = 0, found = 0;
    const bool isKnown = cudaGetDevice(&device) == cudaSuccess &&
                         cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
    return isKnown && found > 0 ? found : 132;
  }();
  return count;
}

/// What CTAs must ask for, so that a multiprocessor (of compute capability 9.0) has room for at most `ctas` of them.
constexpr size_t sharedBytesOf(int64_t ctas) { return ((228 << 10) / (ctas + 1) - 1024) / 128 * 128 + 128; }

/// CTAs of a kernel that starts while the one before it ends go to the multiprocessors that are free first, as many as there is
/// room for: some get several, others none. With so much shared memory each gets its share.
inline size_t spreadBytes(int64_t ctas, size_t sharedBytes = 0) {
  const int64_t each = (ctas + multiprocessors() - 1) / multiprocessors();
  return each > 16 ? sharedBytes : std::max(sharedBytes, sharedBytesOf(each));
}

/// Lets a kernel have `sharedBytes`, and what `spreadBytes` makes of them. All kernels have the same share of a multiprocessor's
/// memory: where the next one wants another, it begins only when the one before has left the multiprocessor.
template <class... Parameters>
cudaError_t prepareKernel(void (*kernel)(Parameters...), size_t sharedBytes = 0) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(std::max(sharedBytes, sharedBytesOf(1))));
}

/// How many clusters of such CTAs run at once, by what the GPU says: its groups of multiprocessors differ in size.
template <class... Parameters>
int clustersAtOnce(void (*kernel)(Parameters...), unsigned threads, size_t sharedBytes, unsigned cluster) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t asked{};
  asked.gridDim = dim3(cluster);
  asked.blockDim = dim3(threads);
  asked.dynamicSmemBytes = sharedBytes;
  asked.attrs = &attribute;
  asked.numAttrs = 1;
  int count = 0;
  const bool isKnown = cudaOccupancyMaxActiveClusters(&count, kernel, &asked) == cudaSuccess && count > 0;
  return isKnown ? count : int(100 / cluster);
}

}  // namespace hstu
