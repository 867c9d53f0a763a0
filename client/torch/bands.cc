#include "client/torch/bands.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace ringserve {
namespace {

// Keys [begin, end), all visible, with none visible beside them.
struct Run {
  int64_t begin, end;
};

// More than `most` runs: only the first `most` + 1.
std::vector<Run> RunsOf(const uint8_t* row, int64_t kv_len, int64_t most) {
  const auto find = [&](int value, int64_t from) {
    const void* found = from < kv_len ? std::memchr(row + from, value, kv_len - from) : nullptr;
    return found == nullptr ? kv_len : static_cast<const uint8_t*>(found) - row;
  };
  std::vector<Run> runs;
  for (int64_t begin = find(1, 0); begin < kv_len && std::ssize(runs) <= most;) {
    const int64_t end = find(0, begin);
    runs.push_back({begin, end});
    begin = find(1, end);
  }
  return runs;
}

// Consecutive queries with the same number of runs, whose edges each stay or move on by one key a
// query.
class RowGroup {
 public:
  RowGroup(int64_t row, std::vector<Run> runs) : row_(row), first_(runs), last_(std::move(runs)) {}

  // Whether the next query's runs continue the group; it then has them.
  bool Take(const std::vector<Run>& runs) {
    if (runs.size() != last_.size()) return false;
    std::vector<Run> moves;
    for (size_t i = 0; i < runs.size(); ++i) {
      const Run move = {runs[i].begin - last_[i].begin, runs[i].end - last_[i].end};
      if ((move.begin != 0 && move.begin != 1) || (move.end != 0 && move.end != 1)) return false;
      if (!moves_.empty() && (move.begin != moves_[i].begin || move.end != moves_[i].end))
        return false;
      moves.push_back(move);
    }
    moves_ = std::move(moves);
    last_ = runs;
    return true;
  }

  // The group ends before query `end`.
  void AddSlices(int64_t end, v1::Mask& mask) const {
    for (size_t i = 0; i < first_.size(); ++i) {
      v1::Slice& slice = *mask.add_slices();
      slice.set_q_begin(row_);
      slice.set_q_end(end);
      slice.set_k_begin(first_[i].begin);
      slice.set_k_end(last_[i].end);
      if (moves_.empty()) continue;
      if (moves_[i].begin == 1) slice.set_lo(first_[i].begin - row_);
      if (moves_[i].end == 1) slice.set_hi(first_[i].end - 1 - row_);
    }
  }

 private:
  int64_t row_;  // the first query
  std::vector<Run> first_, last_;
  std::vector<Run> moves_;  // of each run's edges, from query to query; empty: one query so far
};

}  // namespace

std::optional<v1::Mask> RecogniseBands(const uint8_t* visible, int64_t q_len, int64_t kv_len,
                                       int64_t row_stride, int64_t most) {
  v1::Mask mask;
  std::optional<RowGroup> group;
  for (int64_t row = 0; row < q_len; ++row) {
    std::vector<Run> runs = RunsOf(visible + row * row_stride, kv_len, most);
    if (group.has_value() && group->Take(runs)) continue;
    if (group.has_value()) group->AddSlices(row, mask);
    if (mask.slices_size() + std::ssize(runs) > most) return std::nullopt;
    group.emplace(row, std::move(runs));
  }
  if (group.has_value()) group->AddSlices(q_len, mask);
  if (mask.slices().empty()) return std::nullopt;
  const v1::Slice& whole = mask.slices(0);
  if (mask.slices_size() == 1 && whole.q_end() - whole.q_begin() == q_len &&
      whole.k_end() - whole.k_begin() == kv_len && !whole.has_lo() && !whole.has_hi()) {
    mask.clear_slices();
  }
  return mask;
}

}  // namespace ringserve
