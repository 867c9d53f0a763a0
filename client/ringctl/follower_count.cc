#include "client/ringctl/follower_count.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

using Shares = std::array<double, kByteValues>;

// Which bytes followed one context, and how often.
class Followers {
 public:
  void Add(uint8_t byte, int64_t times) {
    counts_[byte] += times;
    total_ += times;
  }

  int64_t total() const { return total_; }

  // All 0 where nothing followed.
  Shares shares() const {
    Shares shares = {};
    if (total_ == 0) return shares;
    for (const auto& [byte, count] : counts_) {
      shares[byte] = static_cast<double>(count) / static_cast<double>(total_);
    }
    return shares;
  }

 private:
  std::unordered_map<uint8_t, int64_t> counts_;
  int64_t total_ = 0;
};

// Infinite where one is not a number.
double Difference(double a, double b) {
  const double difference = std::abs(a - b);
  return std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
}

double LargestDifference(const Shares& shares, std::span<const float> probabilities) {
  double largest = 0;
  for (int byte = 0; byte < kByteValues; ++byte) {
    largest = std::max(largest, Difference(shares[byte], probabilities[byte]));
  }
  return largest;
}

double LargestDifference(const Shares& a, const Shares& b) {
  double largest = 0;
  for (int byte = 0; byte < kByteValues; ++byte)
    largest = std::max(largest, Difference(a[byte], b[byte]));
  return largest;
}

// Walks through the text for one context length.
class Judge {
 public:
  Judge(std::string_view text, std::span<const float> out, std::span<const float> lse, int kv_head)
      : text_(text), out_(out), lse_(lse), kv_head_(kv_head), length_(kContextLengths[kv_head]) {}

  ContextVerdict Run() {
    verdict_.length = static_cast<int>(length_);
    const size_t reach = text_.size() / 4;
    for (size_t at = 0; at < text_.size(); ++at) {
      Count(at, +1, all_);
      Count(at, +1, near_);
      if (at > reach) Count(at - reach - 1, -1, near_);
      if (at + 1 < length_) continue;
      const auto found = all_.find(text_.substr(at + 1 - length_, length_));
      if (found != all_.end()) JudgeMatch(at, found->first, found->second);
    }
    return verdict_;
  }

 private:
  using Table = std::unordered_map<std::string_view, Followers>;

  void Count(size_t key, int64_t times, Table& table) const {
    if (key < length_) return;
    table[text_.substr(key - length_, length_)].Add(static_cast<uint8_t>(text_[key]), times);
  }

  std::span<const float> Answer(size_t head, size_t at) const {
    return out_.subspan((head * text_.size() + at) * kByteValues, kByteValues);
  }

  void JudgeMatch(size_t at, std::string_view context, const Followers& followers) {
    const Shares shares = followers.shares();
    double worst = 0;
    const size_t first_head = kv_head_ * kSharpness.size();
    for (size_t i = 0; i < kSharpness.size(); ++i) {
      const double lse = std::sqrt(double{kHeadDim}) * kSharpness[i] +
                         std::log(static_cast<double>(followers.total()));
      worst = std::max({worst, LargestDifference(shares, Answer(first_head + i, at)),
                        Difference(lse, lse_[(first_head + i) * text_.size() + at])});
    }
    ++verdict_.matched;
    verdict_.worst = std::max(verdict_.worst, worst);
    if (worst <= kTolerance) {
      ++verdict_.right;
    } else if (verdict_.first_miss.empty()) {
      verdict_.first_miss =
          absl::StrCat("after byte ", at, ", context \"", absl::CHexEscape(std::string(context)),
                       "\": off by ", worst);
    }
    if (LargestDifference(shares, near_[context].shares()) > kTolerance) ++verdict_.far;
    if (at + 1 == text_.size()) return;
    const auto sharpest = Answer(first_head + kSharpness.size() - 1, at);
    const auto likeliest = std::max_element(sharpest.begin(), sharpest.end()) - sharpest.begin();
    ++verdict_.guesses;
    if (likeliest == static_cast<uint8_t>(text_[at + 1])) ++verdict_.guessed;
  }

  const std::string_view text_;
  const std::span<const float> out_, lse_;
  const size_t kv_head_;
  const size_t length_;
  Table all_, near_;  // keys up to the current position; of those, the ones that are near
  ContextVerdict verdict_;
};

}  // namespace

std::array<ContextVerdict, kKvHeads> JudgeByCounting(std::string_view text,
                                                     std::span<const float> out,
                                                     std::span<const float> lse) {
  std::array<ContextVerdict, kKvHeads> verdicts;
  for (int kv_head = 0; kv_head < kKvHeads; ++kv_head) {
    verdicts[kv_head] = Judge(text, out, lse, kv_head).Run();
  }
  return verdicts;
}

}  // namespace ringserve
