// How the library launches its kernels: each may start while the one before it in the stream ends (programmatic dependent
// launch), and so begins with `waitForBefore` (hopper.cuh), in front of all that it reads or writes in device memory. A kernel that waits so
// ends after all that came before it, whoever launched that.
#pragma once
#include <cuda_runtime.h>

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

}  // namespace hstu
