// The attention by head width; each is compiled on its own.
#pragma once
#include "launch.h"

namespace hstu {

template <int Width>
const char* attentionOfWidth(const HstuAttentionArgs& args);
template <>
const char* attentionOfWidth<64>(const HstuAttentionArgs& args);
template <>
const char* attentionOfWidth<128>(const HstuAttentionArgs& args);
template <>
const char* attentionOfWidth<256>(const HstuAttentionArgs& args);

}  // namespace hstu
