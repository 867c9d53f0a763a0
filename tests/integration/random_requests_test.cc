// Random requests to the whole service, judged by the oracle. A case follows from its seed alone.
// RINGSERVE_SOAK: how many cases; RINGSERVE_SEED: the seed of the first (./dev test --soak N --seed
// S).
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "tests/integration/request.h"
#include "tests/support/cluster_fixture.h"
#include "tests/support/random_case.h"

namespace ringserve::test {
namespace {

constexpr int kWorkers = 4;
constexpr uint64_t kDefaultCases = 600 / kSlowness;
constexpr int kMostFailures = 10;  // then the others would say the same
constexpr size_t kMostLogBytes = 100'000;

// Nothing where `name` is set to anything but a number: other cases than asked for prove nothing.
std::optional<uint64_t> NumberFrom(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  uint64_t value = otherwise;
  if (text != nullptr && !absl::SimpleAtoi(text, &value)) return std::nullopt;
  return value;
}

class RandomRequests : public ClusterTest {
 protected:
  static void SetUpTestSuite() {
    Start({.workers = kWorkers, .worker_flags = {"--memory-bytes", "256MiB"}});
  }
  void TearDown() override {
    EXPECT_TRUE(cluster_->AwaitIdle());
    if (!HasFailure()) return;
    const std::string logs = cluster_->Logs();
    ADD_FAILURE() << logs.substr(logs.size() - std::min(logs.size(), kMostLogBytes));
  }
};

// Mostly short, so that there are many; now and then past the sizes of kernels' blocks and
// messages.
Case CaseOf(uint64_t seed) {
  const bool large = seed % 25 == 0;
  Case c = RandomCase(seed, kWorkers, large ? 3000 : 300);
  c.options.set_return_lse(seed % 5 != 1);
  if (seed % 3 == 0) AddRandomExtras(c);
  if (!large) return c;
  c.spec.set_batch(1);
  if (c.spec.masks_size() > 1) c.spec.mutable_masks()->DeleteSubrange(1, c.spec.masks_size() - 1);
  c.spec.set_kv_heads(1);
  c.spec.set_q_heads(1 + static_cast<int64_t>(seed / 25 % 2));
  return c;
}

Request RequestOf(const Case& c, const std::string& request_id = "") {
  v1::AttendHeader header;
  *header.mutable_spec() = c.spec;
  *header.mutable_options() = c.options;
  header.set_request_id(request_id);
  return Request(header, c.seed, c.gain);
}

// Empty where what was asked for is what ran.
std::string WhatIsDisobeyed(const v1::AttentionOptions& options, const v1::PlanSummary& plan) {
  std::string wrong;
  if (options.workers() > 0 && plan.workers() != options.workers())
    absl::StrAppend(&wrong, "workers is ", plan.workers(), "; ");
  if (plan.balancer() <= v1::BALANCER_AUTO ||
      (options.balancer() > v1::BALANCER_AUTO && plan.balancer() != options.balancer()))
    absl::StrAppend(&wrong, "balancer is ", v1::Balancer_Name(plan.balancer()), "; ");
  if (plan.rotate() <= v1::ROTATE_METHOD_AUTO ||
      (options.rotate() > v1::ROTATE_METHOD_AUTO && plan.rotate() != options.rotate()))
    absl::StrAppend(&wrong, "rotate is ", v1::RotateMethod_Name(plan.rotate()), "; ");
  return wrong;
}

std::string WhatIsWrong(const Request& request, const absl::StatusOr<Answer>& answer) {
  if (!answer.ok()) return answer.status().ToString();
  const v1::PlanSummary& plan = answer->statistics.plan();
  std::string wrong = request.WhatIsWrong(*answer);
  absl::StrAppend(&wrong, WhatIsWrongWithStatistics(request.header(), answer->statistics),
                  WhatIsDisobeyed(request.header().options(), plan));
  if (answer->attempts != 1) absl::StrAppend(&wrong, "attempts: ", answer->attempts);
  if (wrong.empty()) return wrong;
  return absl::StrCat(wrong, "\nran: workers ", plan.workers(), " ",
                      v1::Balancer_Name(plan.balancer()), " ",
                      v1::RotateMethod_Name(plan.rotate()));
}

TEST_F(RandomRequests, AreAnsweredAsTheOracleSays) {
  const std::optional<uint64_t> cases = NumberFrom("RINGSERVE_SOAK", kDefaultCases);
  const std::optional<uint64_t> first = NumberFrom("RINGSERVE_SEED", 1);
  ASSERT_TRUE(cases.has_value()) << "RINGSERVE_SOAK must be a number";
  ASSERT_TRUE(first.has_value()) << "RINGSERVE_SEED must be a number";
  std::set<int> balancers, rotates, workers;
  int failures = 0;
  for (uint64_t i = 0; i < *cases && failures < kMostFailures; ++i) {
    if (i > 0 && i % 500 == 0) {
      std::printf("%s, %d failed\n", absl::StrCat(i, " of ", *cases, " cases").c_str(), failures);
      std::fflush(stdout);
    }
    const Case c = CaseOf(*first + i);
    const Request request = RequestOf(c);
    const absl::StatusOr<Answer> answer = request.AskOf(cluster_->client());
    const std::string wrong = WhatIsWrong(request, answer);
    if (!wrong.empty()) {
      ++failures;
      ADD_FAILURE() << wrong << "\n"
                    << c.ToString() << "\nreplay: ./dev test --soak 1 --seed " << c.seed;
    }
    if (!answer.ok()) continue;
    balancers.insert(answer->statistics.plan().balancer());
    rotates.insert(answer->statistics.plan().rotate());
    workers.insert(answer->statistics.plan().workers());
  }
  if (*cases < kDefaultCases || failures > 0) return;
  EXPECT_EQ(balancers.size(), 4u);
  EXPECT_EQ(rotates.size(), 3u);
  EXPECT_EQ(workers, (std::set<int>{1, 2, 3, 4}));
}

TEST_F(RandomRequests, OfManyCallersAreAnsweredEachItsOwn) {
  constexpr int kCallers = 8, kCalls = 6;
  std::atomic<int> right = 0;
  std::vector<std::thread> callers;
  callers.reserve(kCallers);
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      const std::unique_ptr<Client> client = cluster_->NewClient();
      for (int call = 0; call < kCalls; ++call) {
        const std::string id = absl::StrCat("caller-", caller, "-", call);
        const Case c = CaseOf(1000 + 100 * caller + call);
        const Request request = RequestOf(c, id);
        const absl::StatusOr<Answer> answer = request.AskOf(*client);
        const std::string wrong = WhatIsWrong(request, answer);
        EXPECT_EQ(wrong, "") << c.ToString();
        right += wrong.empty();
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(right, kCallers * kCalls);
}

}  // namespace
}  // namespace ringserve::test
