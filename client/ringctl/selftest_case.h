// The requests of a self-test. A case is made from its number alone, so that the number replays it:
// cases n, n + 1, ... go through every dtype with every family of masks, and by chance through
// balancers, rotate methods, head counts, head dims, lengths and extras.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ringserve/client.h"

namespace ringserve {

struct SelftestCase {
  uint64_t seed = 0;
  std::string mask;    // its family: "window", ...
  std::string extras;  // "alibi, bias"; empty: none
  bool backward = false;
  v1::AttendHeader header;  // asks for lse
  std::vector<std::byte> q, k, v, bias, alibi_slopes, sink_logits;
  std::vector<std::byte> d_out, d_lse;  // of a backward case; d_lse may be empty

  AttendInputs inputs() const { return {q, k, v, bias, alibi_slopes, sink_logits}; }
  // "forward f32", ...
  std::string group() const;
};

// How many cases in a row have every dtype with every family of masks. A third of them is backward;
// of three such rounds, each pair is in one.
inline constexpr int kCasesOfAllKinds = 48;

// For exactly `workers` workers, which change nothing else of it. The lengths are at most some
// hundreds, and fewer than workers now and then.
SelftestCase MakeSelftestCase(uint64_t seed, int workers);

}  // namespace ringserve
