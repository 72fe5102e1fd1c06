// A request's inputs, from the host's memory: as a kernel that the next one may start behind. The copy engine takes 5 us longer in
// a graph, until the first kernel runs.
#include <cstdint>
#include "hopper.cuh"
#include "launch.h"
#include "launcher.cuh"

namespace hstu {
namespace {

constexpr int kThreads = 64;

/// Read past every cache: the host has written since.
__device__ __forceinline__ uint4 readHost(const uint4* from) {
  uint4 x;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
  return x;
}

__global__ void __launch_bounds__(kThreads) copy(uint4* to, const uint4* from, int64_t words, int rest) {
  waitForBefore();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < words) to[i] = readHost(from + i);
  if (i == words)
    for (int byte = 0; byte < rest; byte++)
      reinterpret_cast<uint8_t*>(to + words)[byte] = reinterpret_cast<const volatile uint8_t*>(from + words)[byte];
}

}  // namespace
}  // namespace hstu

extern "C" const char* hstuCopy(void* to, const void* from, int64_t bytes, void* stream) {
  using namespace hstu;
  if (bytes <= 0) return nullptr;
  if ((uintptr_t(to) | uintptr_t(from)) % 16) return "a copy must begin at multiples of 16 bytes";
  static const cudaError_t prepared = prepareKernel(copy);
  if (prepared != cudaSuccess) return cudaGetErrorString(prepared);
  const int64_t words = bytes / 16, blocks = words / kThreads + 1;
  return launchKernel(copy, dim3(unsigned(blocks)), kThreads, spreadBytes(blocks), 0, stream, static_cast<uint4*>(to),
                      static_cast<const uint4*>(from), words, int(bytes % 16));
}
