#include "server/plan/ptrr.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <queue>
#include <tuple>

namespace ringserve {
namespace {

constexpr int64_t kUsualBlock = 128;
constexpr int64_t kBlocksPerRank = 16;
constexpr int64_t kMostUsualBlocks = 1 << 17;

// visit(block, what the band shows to its queries), for every block that sees something.
template <typename Visit>
void ForEachBlock(const Band& band, int64_t block, Visit visit) {
  for (int64_t b = band.q_begin / block; b * block < band.q_end; ++b) {
    const Band strip = Cut(band, b * block, (b + 1) * block, band.k_begin, band.k_end);
    if (!Empty(strip)) visit(b, strip);
  }
}

std::vector<int64_t> Descending(std::span<const uint64_t> work) {
  std::vector<int64_t> order(work.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return work[a] > work[b]; });
  return order;
}

// How many of `tasks` each group gets: its share, rounded so that the sum is right.
std::vector<int64_t> Quotas(int64_t tasks, const Weights& weights) {
  const std::vector<std::vector<Segment>> cuts =
      ContiguousLayout(std::max<int64_t>(tasks, 1), static_cast<int>(weights.size()), weights)
          .rows[0];
  std::vector<int64_t> quotas;
  for (const std::vector<Segment>& segments : cuts)
    quotas.push_back(segments.empty() ? 0 : segments[0].size());
  return quotas;
}

std::vector<std::vector<int64_t>> WeightedSchedule(std::span<const uint64_t> work,
                                                   const Weights& weights) {
  const int groups = static_cast<int>(weights.size());
  const std::vector<int64_t> quotas = Quotas(static_cast<int64_t>(work.size()), weights);
  using Turn = std::tuple<double, double, int>;  // load and tasks for the weight, group
  std::priority_queue<Turn, std::vector<Turn>, std::greater<>> turns;
  for (int group = 0; group < groups; ++group) {
    if (quotas[group] > 0) turns.push({0, 0, group});
  }
  const double largest = *std::max_element(weights.begin(), weights.end());
  std::vector<std::vector<int64_t>> tasks(groups);
  for (const int64_t task : Descending(work)) {
    const auto [load, count, group] = turns.top();
    turns.pop();
    tasks[group].push_back(task);
    const double pace = largest / weights[group];
    if (static_cast<int64_t>(tasks[group].size()) < quotas[group])
      turns.push({load + static_cast<double>(work[task]) * pace, count + pace, group});
  }
  return tasks;
}

std::vector<std::vector<int64_t>> SnakeSchedule(std::span<const uint64_t> work, int groups) {
  const std::vector<int64_t> order = Descending(work);
  const int64_t tasks = static_cast<int64_t>(order.size());
  const int64_t dealt_whole = tasks / groups * groups;
  const int64_t last_task = tasks - 1;
  std::vector<std::vector<int64_t>> dealt(groups);
  std::vector<int> turn(groups);  // of the round, the groups in their order
  std::iota(turn.begin(), turn.end(), 0);
  int holder = -1;  // of the last task
  for (int64_t i = 0; i < tasks; ++i) {
    if (i > 0 && i % groups == 0) std::reverse(turn.begin(), turn.end());
    if (i == dealt_whole && holder >= 0) {
      const auto own = std::find(turn.begin(), turn.end(), holder);
      if (own - turn.begin() >= tasks - dealt_whole)
        std::iter_swap(own, turn.begin() + (tasks - dealt_whole - 1));
    }
    const int group = turn[i % groups];
    dealt[group].push_back(order[i]);
    if (order[i] == last_task) holder = group;
  }
  return dealt;
}

}  // namespace

std::vector<uint64_t> BlockPairs(const std::vector<Band>& bands, int64_t q_len, int64_t block) {
  std::vector<uint64_t> pairs((q_len + block - 1) / block);
  for (const Band& band : bands)
    ForEachBlock(band, block, [&](int64_t b, const Band& strip) { pairs[b] += Area(strip); });
  return pairs;
}

std::vector<uint64_t> BlockCounts(const std::vector<Band>& bands, int64_t q_len, int64_t block) {
  // A strip's keys have no gap: the blocks it touches are a range. Strips may share blocks.
  std::vector<std::vector<Segment>> touched((q_len + block - 1) / block);
  for (const Band& band : bands) {
    ForEachBlock(band, block, [&](int64_t b, const Band& strip) {
      touched[b].push_back({strip.k_begin / block, (strip.k_end - 1) / block + 1});
    });
  }
  std::vector<uint64_t> counts;
  for (std::vector<Segment>& ranges : touched) {
    std::sort(ranges.begin(), ranges.end(),
              [](const Segment& a, const Segment& b) { return a.begin < b.begin; });
    int64_t counted = 0;  // up to here
    uint64_t count = 0;
    for (const Segment& range : ranges) {
      count += std::max<int64_t>(0, range.end - std::max(range.begin, counted));
      counted = std::max(counted, range.end);
    }
    counts.push_back(count);
  }
  return counts;
}

std::vector<std::vector<int64_t>> PtrrSchedule(std::span<const uint64_t> work, int groups,
                                               const Weights& weights) {
  assert(groups >= 1 && (weights.empty() || weights.size() == static_cast<size_t>(groups)));
  std::vector<std::vector<int64_t>> tasks =
      weights.empty() ? SnakeSchedule(work, groups) : WeightedSchedule(work, weights);
  for (std::vector<int64_t>& group : tasks) std::sort(group.begin(), group.end());
  return tasks;
}

RowLayout PtrrRow(std::span<const uint64_t> work, int64_t length, int64_t block, int ranks,
                  const Weights& weights) {
  RowLayout row(ranks);
  const std::vector<std::vector<int64_t>> blocks = PtrrSchedule(work, ranks, weights);
  for (int rank = 0; rank < ranks; ++rank) {
    for (const int64_t b : blocks[rank])
      AppendSegment(row[rank], {b * block, std::min(length, (b + 1) * block)});
  }
  return row;
}

int64_t DefaultPtrrBlock(int64_t length, int ranks) {
  int64_t block = kUsualBlock;
  while (block > 1 && length / block < kBlocksPerRank * ranks) block /= 2;
  while ((length + block - 1) / block > kMostUsualBlocks) block *= 2;
  return block;
}

}  // namespace ringserve
