// The ops of this library, each in a file of its own.
#pragma once
#include "../custom-op.h"

namespace peregrine {

extern const Op HSTU_ATTENTION;
extern const Op HSTU_CAUSAL_ATTENTION;
extern const Op HSTU_GATE;
extern const Op HSTU_BF16;
extern const Op HSTU_KV_TILES;
/** One per form: see linear.cc. */
extern const std::vector<Op> HSTU_LINEAR;

constexpr const char* CPU = "CPUExecutionProvider";

}  // namespace peregrine
