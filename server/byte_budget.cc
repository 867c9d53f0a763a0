#include "server/byte_budget.h"

#include <cassert>

namespace ringserve {

bool ByteBudget::Account::MayRead(uint64_t bytes, uint64_t expected) const {
  if (held_ + expected == 0) return true;
  const uint64_t more = expected + bytes;
  return held_ + more <= limit_ && budget_.held_ + more <= budget_.limit_;
}

void ByteBudget::Account::Hold(uint64_t bytes) {
  held_ += bytes;
  budget_.held_ += bytes;
}

void ByteBudget::Account::Release(uint64_t bytes) {
  assert(bytes <= held_);
  held_ -= bytes;
  budget_.held_ -= bytes;
}

}  // namespace ringserve
