// What Hopper adds to CUDA C++, as PTX: barriers in shared memory, the bulk tensor copy engine, warpgroup matrix
// products over tiles with the 128-byte swizzle, clusters. PTX ISA 8.0, sections on mbarrier, cp.async.bulk and wgmma.
#pragma once
#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cstdint>
#include <type_traits>

namespace hstu {

__device__ __forceinline__ uint32_t sharedAddress(const void* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}

/// The next multiple of 1,024 bytes, by an offset: the compiler then still knows that it is shared memory, whose loads are
/// faster than those of anywhere.
__device__ __forceinline__ uint8_t* aligned(uint8_t* shared) { return shared + (-sharedAddress(shared) & 1023); }

// --- barriers: a phase ends when `count` arrivals and all expected bytes are there ---

__device__ __forceinline__ void barrierInit(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}

/// Makes initialised barriers visible to the copy engine and to the other CTAs of the cluster.
__device__ __forceinline__ void barrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void barrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrivals of a warp: its first lane's, behind all of them. compute-sanitizer's racecheck knows only of threads that arrive
/// themselves: built for it, all do.
#ifdef HSTU_RACECHECK
constexpr int kArrivals = 32;
#else
constexpr int kArrivals = 1;
#endif

__device__ __forceinline__ void arriveTogether(uint32_t barrier, int lane) {
  __syncwarp();
  if (kArrivals == 32 || lane == 0) barrierArrive(barrier);
}

__device__ __forceinline__ void barrierWait(uint32_t barrier, uint32_t phase) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\nbra again;\nover:\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}

// --- copy engine: one box of a tensor into shared memory; what lies outside of the tensor is zero ---

__device__ __forceinline__ void copyBox(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}

__device__ __forceinline__ void copyBox(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int token,
                                        int head, int user) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::
          "r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(token), "r"(head), "r"(user)
      : "memory");
}

/// The same, into the same place of every CTA of the cluster that `ctas` has a bit of, and to its barrier there.
template <bool isShared>
__device__ __forceinline__ void copyBox(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int row, uint16_t ctas) {
  if constexpr (!isShared) return copyBox(to, map, barrier, column, row);
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], "
      "[%2], %5;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(ctas)
      : "memory");
}

__device__ __forceinline__ void prefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// --- warpgroup matrix products ---

/// Descriptor of a tile in shared memory with the 128-byte swizzle; offsets in bytes.
__device__ __forceinline__ uint64_t tileDescriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  return uint64_t((address & 0x3FFFF) >> 4) | (uint64_t(leading >> 4) << 16) | (uint64_t(stride >> 4) << 32) | (1ull << 62);
}

__device__ __forceinline__ void productFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void productCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void productWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

/// Keeps the compiler from moving accumulators across an asynchronous product.
template <int Count>
__device__ __forceinline__ void pin(float (&values)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; i++) asm volatile("" : "+f"(values[i])::"memory");
}

// --- launches that overlap: see launcher.cuh ---

/// Waits until all that was launched before has ended and can be seen; then lets the next kernel's CTAs come, to wait
/// in turn, where there is room for them.
__device__ __forceinline__ void waitForBefore() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// --- clusters ---

__device__ __forceinline__ void clusterArrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void clusterWait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

/// Of the cluster's CTAs only: what they wrote need not be seen. A release waits for all writes of a thread.
__device__ __forceinline__ void clusterArriveRelaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }

/// Arrives at CTA `rank`'s barrier in the place of `barrier`; what was read before has been.
__device__ __forceinline__ void barrierArriveAt(uint32_t barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

/// Four floats at `address` of this CTA's shared memory, read from CTA `rank` of the cluster.
__device__ __forceinline__ float4 readCluster(uint32_t address, int rank) {
  uint32_t there;
  float4 x;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(there)
               : "memory");
  return x;
}

// --- registers of a warpgroup, by role ---

template <int Count>
__device__ __forceinline__ void giveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void takeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

// --- arithmetic ---

__device__ __forceinline__ float tanhFast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// SiLU(x) of half = x / 2: x·sigmoid(x) = h + h·tanh(h), one operation of the special function unit.
__device__ __forceinline__ float siluOfHalf(float half) { return fmaf(half, tanhFast(half), half); }

__device__ __forceinline__ uint32_t tanhOfHalves(uint32_t halves) {
  uint32_t y;
  asm("tanh.approx.f16x2 %0, %1;" : "=r"(y) : "r"(halves));
  return y;
}

__device__ __forceinline__ uint32_t twice(uint16_t half) { return half * 0x10001u; }

__device__ __forceinline__ uint32_t addHalves(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}

__device__ __forceinline__ uint32_t fmaHalves(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t y;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
  return y;
}

/// All bits of those halves of `a` that are below `b`'s.
__device__ __forceinline__ uint32_t halvesBelow(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("set.lt.u32.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}

/// The upper byte of a half between 1,024 and 1,279: the lower one counts. So small whole numbers are compared in pairs.
constexpr uint32_t kWholeHalf = 0x64;

/// 1,024 + n, twice.
__device__ __forceinline__ uint32_t wholeHalf(int n) { return (kWholeHalf << 8 | n) * 0x10001u; }

/// 1,024 + n, and behind it 1,025 + n.
__device__ __forceinline__ constexpr uint32_t wholeHalves(int n) {
  return (kWholeHalf << 8 | n) | (kWholeHalf << 8 | (n + 1)) << 16;
}

__device__ __forceinline__ uint32_t packHalves(float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// What is beyond the largest half becomes that.
__device__ __forceinline__ uint32_t packBounded(float a, float b) {
  uint32_t y;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
  return y;
}

__device__ __forceinline__ float2 unpackHalves(uint32_t packed) {
  return __half22float2(*reinterpret_cast<const __half2*>(&packed));
}

/// Four lanes hold words 0 … 3 each, of one row; lane i gets word i of all four, in their order.
__device__ __forceinline__ void transposeQuad(uint32_t (&words)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool isUpper = lane & bit;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & bit) continue;
      const uint32_t low = words[i], high = words[i + bit];
      const uint32_t got = __shfl_xor_sync(~0u, isUpper ? low : high, bit);
      words[i] = isUpper ? got : low;
      words[i + bit] = isUpper ? high : got;
    }
  }
}

}  // namespace hstu
