// How long a request takes, for the table that compares numbers of workers with each other.
#pragma once

#include <string>

#include "client/ringctl/selftest_run.h"
#include "ringserve/client.h"

namespace ringserve {

inline constexpr char kSpeed[] = "speed";

struct Speed {
  int workers = 0;
  std::string request;  // in words
  double seconds = 0;   // of the fastest, at the client
};

// One of causal self-attention over `length` tokens, 8 heads on 2, dim 128, sent a few times to
// `workers` workers. The answers are checked, too: the result says so, and `speed` is filled where
// it is kPassed. `may_lack` as in RunSelftestCase.
CaseResult MeasureSpeed(Client& client, int workers, v1::DType dtype, int64_t length, bool may_lack,
                        Speed& speed);

}  // namespace ringserve
