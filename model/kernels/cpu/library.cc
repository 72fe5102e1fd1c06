// What the engine calls: may this process use the library, and the registration of its ops.
#include <sys/syscall.h>
#include <unistd.h>

#include "ops.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

/**
 * Null when this process may use the library, else why not. Linux hands out AMX's tile registers (8 KiB
 * per thread) on demand, and can refuse.
 */
EXPORTED const char* PeregrineKernelsRefusal() {
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
             ? nullptr
             : "the kernel does not permit AMX tiles (arch_prctl ARCH_REQ_XCOMP_PERM)";
}

EXPORTED peregrine::Status* RegisterCustomOps(peregrine::Options* options,
                                              const peregrine::ApiBase* base) {
  using namespace peregrine;
  static Domain* domain = nullptr;
  std::vector<const Op*> ops = {&HSTU_ATTENTION, &HSTU_CAUSAL_ATTENTION, &HSTU_GATE,
                                &HSTU_BF16, &HSTU_KV_TILES};
  for (const Op& op : HSTU_LINEAR) ops.push_back(&op);
  return addOps(options, base, &domain, ops);
}
