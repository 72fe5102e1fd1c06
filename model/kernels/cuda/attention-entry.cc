// The attention's entry: what needs no GPU to be decided.
#include "attention-widths.h"
#include "plan.h"

extern "C" const char* hstuAttention(const HstuAttentionArgs* args) {
  const HstuAttentionArgs& a = *args;
  if (a.rows == 0 || a.users == 0) return nullptr;
  if (a.dqk % 8 || a.dv % 8) return "a head's width must be a multiple of 8";
  switch (hstu::paddedWidth(a.dqk > a.dv ? a.dqk : a.dv)) {
    case 64:
      return hstu::attentionOfWidth<64>(a);
    case 128:
      return hstu::attentionOfWidth<128>(a);
    case 256:
      return hstu::attentionOfWidth<256>(a);
    default:
      return "a head may have at most 256 columns";
  }
}
