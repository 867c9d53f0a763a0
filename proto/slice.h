// A mask's slice as a band.
#pragma once

#include "proto/band.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// As it is: not normalized.
inline Band ToBand(const v1::Slice& slice) {
  return {.q_begin = slice.q_begin(),
          .q_end = slice.q_end(),
          .k_begin = slice.k_begin(),
          .k_end = slice.k_end(),
          .lo = slice.has_lo() ? slice.lo() : Band::kUnboundedLo,
          .hi = slice.has_hi() ? slice.hi() : Band::kUnboundedHi};
}

}  // namespace ringserve
