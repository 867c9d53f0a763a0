#include "client/ringctl/load_statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ringserve {

void LoadStatistics::Add(const LoadStatistics& other) {
  ok += other.ok;
  wrong += other.wrong;
  failed += other.failed;
  retried += other.retried;
  for (const auto& [code, count] : other.failures) failures[code] += count;
  if (!other.last_failure.ok()) last_failure = other.last_failure;
  if (first_wrong.empty()) first_wrong = other.first_wrong;
  seconds.insert(seconds.end(), other.seconds.begin(), other.seconds.end());
  bytes += other.bytes;
}

double Percentile(const std::vector<double>& sorted, double percent) {
  if (sorted.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double count = static_cast<double>(sorted.size());
  const auto rank = static_cast<size_t>(std::ceil(percent / 100 * count));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

}  // namespace ringserve
