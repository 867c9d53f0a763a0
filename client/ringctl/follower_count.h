// Counts in a text what followed the same context before, and judges an answer of the service to
// the context task (client/ringctl/context_task.h) by it. Contexts are compared byte by byte.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "client/ringctl/context_task.h"

namespace ringserve {

// How far a probability may be from the counted share, and a log-sum-exp from what the number of
// matches makes of it. The shares alone would not show a key that is left out or seen twice where
// one byte always follows; the log-sum-exp does.
inline constexpr double kTolerance = 1e-4;

struct ContextVerdict {
  int length = 0;       // n
  int64_t matched = 0;  // positions whose last n bytes had been seen before
  int64_t right = 0;    // of those: all probabilities and the lse within kTolerance, in all heads
  int64_t far =
      0;  // of those: would not be right without keys more than a quarter of the text back
  int64_t guesses = 0;     // of those: a next byte exists
  int64_t guessed = 0;     // of those: the likeliest byte is the next one
  double worst = 0;        // largest difference of all these (inf: not a number)
  std::string first_miss;  // in words; empty: none
};

// `out` is [1, kQueryHeads, text.size(), kByteValues], `lse` [1, kQueryHeads, text.size()]. One
// verdict per entry of kContextLengths.
std::array<ContextVerdict, kKvHeads> JudgeByCounting(std::string_view text,
                                                     std::span<const float> out,
                                                     std::span<const float> lse);

}  // namespace ringserve
