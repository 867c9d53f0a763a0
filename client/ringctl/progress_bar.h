// A line on the terminal that says how far a long call is.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace ringserve {

// Draws on stderr where that is a terminal, and only when the call takes longer than a moment.
class ProgressBar {
 public:
  // Of the bytes to move, `upload_bytes` come first.
  explicit ProgressBar(uint64_t upload_bytes);
  ~ProgressBar();  // clears the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Update(uint64_t done, uint64_t total);
  void Clear();

 private:
  const uint64_t upload_bytes_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point begin_;
  bool drawn_ = false;
};

// "[######------------]" of `width` cells in all; `total` 0 is full.
std::string BarText(uint64_t done, uint64_t total, int width);

}  // namespace ringserve
