// The load generator: what it sends, that it counts right, and that no wrong answer passes.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/ringctl/load_case.h"
#include "client/ringctl/load_run.h"
#include "client/ringctl/load_statistics.h"
#include "proto/validate.h"
#include "tests/support/elements.h"
#include "tests/support/oracle.h"
#include "tests/support/wait.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

v1::AttendHeader SmallHeader(v1::DType dtype = v1::DTYPE_F32) {
  v1::AttendHeader header;
  v1::AttentionSpec& spec = *header.mutable_spec();
  spec.set_batch(1);
  spec.set_q_heads(2);
  spec.set_kv_heads(1);
  spec.set_q_len(40);
  spec.set_kv_len(40);
  spec.set_head_dim(8);
  spec.set_value_dim(8);
  spec.set_dtype(dtype);
  spec.set_tensor_layout(v1::TENSOR_LAYOUT_BHSD);
  spec.add_masks()->set_causal(true);
  header.mutable_options()->set_return_lse(true);
  return header;
}

LoadCase SmallCase(v1::DType dtype = v1::DTYPE_F32) {
  LoadCase load = *MakeLoadCase(SmallHeader(dtype), 1);
  AddRightRows(load, 1);
  return load;
}

// Answers as it is told to, in this process.
class FakeClient : public Client {
 public:
  using Answering = std::function<absl::StatusOr<AttendResult>(
      const v1::AttendHeader&, const AttendInputs&, const AttendOutputs&, const CallOptions&)>;
  explicit FakeClient(Answering answering) : answering_(std::move(answering)) {}

  absl::StatusOr<AttendResult> Attend(const v1::AttendHeader& header, const AttendInputs& inputs,
                                      const AttendOutputs& outputs,
                                      const CallOptions& options) override {
    ++calls;
    return answering_(header, inputs, outputs, options);
  }
  absl::StatusOr<AttendResult> AttendBackward(const v1::AttendHeader&, const BackwardInputs&,
                                              const BackwardOutputs&, const CallOptions&) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<v1::PlanResponse> Plan(const v1::PlanRequest&) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<v1::GetClusterResponse> GetCluster() override {
    return absl::UnimplementedError("");
  }

  std::atomic<int> calls{0};

 private:
  const Answering answering_;
};

// The right answer, by the tests' own oracle.
absl::StatusOr<AttendResult> AnswerRight(const v1::AttendHeader& header, const AttendInputs& inputs,
                                         const AttendOutputs& outputs, const CallOptions&) {
  const test::Inputs copy = {.q = {inputs.q.begin(), inputs.q.end()},
                             .k = {inputs.k.begin(), inputs.k.end()},
                             .v = {inputs.v.begin(), inputs.v.end()}};
  const test::Reference right = test::Attend(header.spec(), copy);
  const v1::DType dtype = header.spec().dtype();
  std::ranges::copy(test::FromDoubles(right.out, dtype), outputs.out.begin());
  std::ranges::copy(
      test::FromDoubles(right.lse, dtype == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32),
      outputs.lse.begin());
  return AttendResult{};
}

LoadStatistics Load(Client& client, const LoadCase& load, const LoadRunOptions& options) {
  return RunLoad(client, std::span(&load, 1), options);
}

TEST(Percentile, IsTheLeastValueThatSoManyDoNotExceed) {
  std::vector<double> sorted;
  for (int i = 1; i <= 200; ++i) sorted.push_back(i);
  EXPECT_EQ(Percentile(sorted, 50), 100);
  EXPECT_EQ(Percentile(sorted, 99), 198);
  EXPECT_EQ(Percentile(sorted, 99.9), 200);
  EXPECT_EQ(Percentile(sorted, 100), 200);
  EXPECT_EQ(Percentile(sorted, 0.1), 1);
  EXPECT_EQ(Percentile({7}, 1), 7);
  EXPECT_EQ(Percentile({1, 9}, 50), 1);
  EXPECT_EQ(Percentile({1, 9}, 51), 9);
  EXPECT_TRUE(std::isnan(Percentile({}, 50)));
}

TEST(LoadCase, MixedHeadersAreOfManyKindsAndAllValid) {
  std::set<int> dtypes, layouts;
  std::set<bool> causal, cross, grouped;
  int rings = 0;
  const std::vector<v1::AttendHeader> headers = MixedHeaders(200, 3, 5);
  for (const v1::AttendHeader& header : headers) {
    EXPECT_TRUE(ValidateHeader(header).ok()) << ValidateHeader(header);
    const v1::AttentionSpec& spec = header.spec();
    dtypes.insert(spec.dtype());
    layouts.insert(spec.tensor_layout());
    causal.insert(spec.masks_size() > 0);
    cross.insert(spec.q_len() != spec.kv_len());
    grouped.insert(spec.q_heads() != spec.kv_heads());
    rings += header.options().workers() == 3;
  }
  EXPECT_EQ(dtypes.size(), 4u);
  EXPECT_EQ(layouts.size(), 2u);
  EXPECT_EQ(causal.size() + cross.size() + grouped.size(), 6u);
  EXPECT_EQ(rings, 100);
  const std::vector<v1::AttendHeader> again = MixedHeaders(200, 3, 5);
  for (size_t i = 0; i < headers.size(); ++i) {
    EXPECT_EQ(headers[i].SerializeAsString(), again[i].SerializeAsString());
  }
  EXPECT_NE(MixedHeaders(1, 3, 6)[0].SerializeAsString(), headers[0].SerializeAsString());
}

TEST(LoadCase, RefusesRequestsThatThisMachineHasNoMemoryFor) {
  const v1::AttendHeader small = SmallHeader(v1::DTYPE_F32);
  const TensorBytes bytes = *BytesOf(small.spec());
  const uint64_t inputs = bytes.q + bytes.k + bytes.v, answer = bytes.out + bytes.lse;
  const std::vector<v1::AttendHeader> headers = {small, small};
  EXPECT_TRUE(CheckMemory(headers, 3, 2 * inputs + 3 * answer).ok());
  EXPECT_TRUE(CheckMemory(headers, 3, 0).ok());
  EXPECT_FALSE(CheckMemory(headers, 3, 2 * inputs + 3 * answer - 1).ok());

  v1::AttendHeader large = small;  // just below 2^62 bytes, 1024 times
  large.mutable_spec()->set_batch(1 << 24);
  large.mutable_spec()->set_q_len(1 << 28);
  const absl::Status status = CheckMemory({&large, 1}, 1024, uint64_t{1} << 40);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--concurrency 1024"));
}

TEST(LoadCase, InputsAreNormalInEveryType) {
  for (const v1::DType dtype : {v1::DTYPE_F32, v1::DTYPE_F64, v1::DTYPE_BF16, v1::DTYPE_F16}) {
    v1::AttendHeader header = SmallHeader(dtype);
    header.mutable_spec()->set_q_len(1'000);
    const LoadCase load = *MakeLoadCase(header, 3);
    const std::vector<double> values = test::ToDoubles(load.q, dtype);
    ASSERT_EQ(values.size(), 2u * 1'000 * 8);
    double sum = 0, squares = 0;
    for (const double value : values) {
      sum += value;
      squares += value * value;
    }
    EXPECT_NEAR(sum / values.size(), 0, 0.05) << dtype;
    EXPECT_NEAR(squares / values.size(), 1, 0.05) << dtype;
    EXPECT_EQ(load.q, MakeLoadCase(header, 3)->q);
    EXPECT_NE(load.q, MakeLoadCase(header, 4)->q);
  }
}

TEST(LoadRun, TakesRightAnswersOfEveryTypeForRight) {
  FakeClient client(AnswerRight);
  for (const v1::DType dtype : {v1::DTYPE_F32, v1::DTYPE_F64, v1::DTYPE_BF16, v1::DTYPE_F16}) {
    const LoadStatistics statistics = Load(client, SmallCase(dtype), {.requests = 3});
    EXPECT_EQ(statistics.ok, 3) << statistics.first_wrong;
    EXPECT_EQ(statistics.wrong, 0);
    EXPECT_EQ(statistics.seconds.size(), 3u);
  }
}

TEST(LoadRun, FindsAWrongRowAndAnswersThatWereNeverWritten) {
  FakeClient corrupting(
      [](const auto& header, const auto& inputs, const auto& outputs, const auto& options) {
        auto result = AnswerRight(header, inputs, outputs, options);
        const size_t row = 8 * sizeof(float);  // of head 1: query 19's into query 20's
        std::copy_n(outputs.out.begin() + 59 * row, row, outputs.out.begin() + 60 * row);
        return result;
      });
  LoadStatistics statistics = Load(corrupting, SmallCase(), {.requests = 4});
  EXPECT_EQ(statistics.wrong, 4);
  EXPECT_EQ(statistics.ok, 0);
  EXPECT_THAT(statistics.first_wrong, HasSubstr("head 1, query 20"));

  FakeClient idle([](const auto&...) { return AttendResult{}; });
  statistics = Load(idle, SmallCase(), {.requests = 4});
  EXPECT_EQ(statistics.wrong, 4);

  FakeClient wrong_lse(
      [](const auto& header, const auto& inputs, const auto& outputs, const auto& options) {
        auto result = AnswerRight(header, inputs, outputs, options);
        std::fill(outputs.lse.begin(), outputs.lse.end(), std::byte{0});
        return result;
      });
  statistics = Load(wrong_lse, SmallCase(), {.requests = 1});
  EXPECT_EQ(statistics.wrong, 1);
  EXPECT_THAT(statistics.first_wrong, HasSubstr("lse"));
}

TEST(LoadRun, CountsFailuresByCodeAndGoesOn) {
  std::atomic<int> call{0};
  FakeClient client([&](const auto& header, const auto& inputs, const auto& outputs,
                        const auto& options) -> absl::StatusOr<AttendResult> {
    switch (call++ % 4) {
      case 0:
        return absl::UnavailableError("lost");
      case 1:
        return absl::InternalError("bug");
      case 2:
        options.on_retry(2, absl::UnavailableError("lost"));
        options.on_retry(3, absl::UnavailableError("lost"));
    }
    return AnswerRight(header, inputs, outputs, options);
  });
  const LoadStatistics statistics = Load(client, SmallCase(), {.concurrency = 1, .requests = 8});
  EXPECT_EQ(statistics.requests(), 8);
  EXPECT_EQ(statistics.ok, 4);
  EXPECT_EQ(statistics.failed, 4);
  EXPECT_EQ(statistics.retried, 2);
  EXPECT_EQ(statistics.failures.at(absl::StatusCode::kUnavailable), 2);
  EXPECT_EQ(statistics.failures.at(absl::StatusCode::kInternal), 2);
  EXPECT_EQ(statistics.last_failure.code(), absl::StatusCode::kInternal);
}

TEST(LoadRun, SendsAsManyRequestsAsAskedFromAllThreads) {
  std::atomic<int> running{0}, most{0};
  FakeClient client([&](const auto&...) {
    const int now = ++running;
    for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
    }
    test::WaitUntil([&] { return most == 3; }, milliseconds(5'000));
    --running;
    return AttendResult{};
  });
  const LoadCase load = *MakeLoadCase(SmallHeader(), 1);  // without right rows: nothing is checked
  const LoadStatistics statistics = Load(client, load, {.concurrency = 3, .requests = 50});
  EXPECT_EQ(client.calls, 50);
  EXPECT_EQ(statistics.ok, 50);
  EXPECT_EQ(most, 3);
}

TEST(LoadRun, EndsWhenItsTimeIsOverOrWhenItIsStopped) {
  FakeClient client([](const auto&...) { return AttendResult{}; });
  const LoadCase load = *MakeLoadCase(SmallHeader(), 1);
  EXPECT_GT(Load(client, load, {.duration = milliseconds(50)}).ok, 0);
  const int calls = client.calls;
  const LoadRunOptions stopped = {.duration = milliseconds(3'600'000),
                                  .stopped = [&] { return client.calls > calls + 100; }};
  EXPECT_GT(Load(client, load, stopped).ok, 0);
}

TEST(LoadRun, HandsEachRequestItsDeadlineAttemptsAndPatience) {
  FakeClient client([](const auto&, const auto&, const auto&, const CallOptions& options) {
    EXPECT_EQ(options.deadline, milliseconds(1'234));
    EXPECT_EQ(options.max_attempts, 2);
    EXPECT_EQ(options.wait_for_ready, milliseconds(567));
    return AttendResult{};
  });
  const LoadCase load = *MakeLoadCase(SmallHeader(), 1);
  Load(client, load,
       {.requests = 1,
        .deadline = milliseconds(1'234),
        .max_attempts = 2,
        .wait_for_ready = milliseconds(567)});
  EXPECT_EQ(client.calls, 1);
}

}  // namespace
}  // namespace ringserve
