// A backward call whose worker is killed, whose caller cancels or whose deadline passes while its
// ring turns: as Attend.
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "tests/integration/backward_request.h"
#include "tests/integration/held_job.h"
#include "tests/integration/raw_call.h"
#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

using std::chrono::milliseconds;

class BackwardFaultTest : public ::testing::Test {
 protected:
  // Small heads: much arithmetic for few bytes, so that a step takes long.
  static void SetUpTestSuite() {
    cluster_ = new Cluster({.workers = 3});
    v1::AttendHeader header = MakeHeader(MakeSpec(12'288, 12'288, 2, 16, 16), "backward", 2);
    header.mutable_options()->set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
    request_ = new BackwardRequest(cluster_->client(), header, 1, /*with_d_lse=*/false);
    const absl::StatusOr<Gradients> right = Ask("undisturbed");
    if (!right.ok()) throw std::runtime_error(right.status().ToString());
    right_ = new Gradients(*right);
  }
  static void TearDownTestSuite() {
    delete right_;
    delete request_;
    delete cluster_;
    cluster_ = nullptr;
  }
  void TearDown() override {
    EXPECT_TRUE(cluster_->AwaitIdle()) << "something is still reserved";
    if (HasFailure()) ADD_FAILURE() << cluster_->Logs();
  }

  static absl::StatusOr<Gradients> Ask(const std::string& id, const CallOptions& options = {}) {
    return request_->AskOf(cluster_->client(), request_->Named(id, 2), options);
  }

  // Whoever has rank 1, once it is in that step; -1: it does not come there.
  static int AwaitStep(const std::string& id, int step) {
    const int worker = WorkerOf(*cluster_, id, 1);
    if (worker < 0) return worker;
    const auto line = cluster_->worker(worker).WaitForLogLine(
        {absl::StrCat("step=", step, "/"), absl::StrCat("request=", id)});
    return line.has_value() ? worker : -1;
  }

  // The same plan on the same machine: the same bits.
  static void ExpectRight(const absl::StatusOr<Gradients>& gradients) {
    ASSERT_TRUE(gradients.ok()) << gradients.status();
    EXPECT_TRUE(gradients->d_q == right_->d_q);
    EXPECT_TRUE(gradients->d_k == right_->d_k);
    EXPECT_TRUE(gradients->d_v == right_->d_v);
  }

  static void Heal(int victim) {
    cluster_->RestartWorker(victim);
    ASSERT_TRUE(cluster_->AwaitWorkers(3));
  }

  static std::unique_ptr<RawCall> Begin(const std::string& id, milliseconds deadline) {
    auto call = std::make_unique<RawCall>(NewChannel(cluster_->address()), deadline,
                                          std::function<void(grpc::ClientContext&)>(),
                                          /*backward=*/true);
    const BackwardInputs inputs = request_->inputs();
    call->SendHeader(request_->Named(id, 2));
    for (const auto& [tensor, bytes] : {std::pair{v1::TENSOR_ID_Q, inputs.q},
                                        {v1::TENSOR_ID_K, inputs.k},
                                        {v1::TENSOR_ID_V, inputs.v},
                                        {v1::TENSOR_ID_OUT, inputs.out},
                                        {v1::TENSOR_ID_LSE, inputs.lse},
                                        {v1::TENSOR_ID_D_OUT, inputs.d_out}}) {
      call->SendBytes(tensor, {bytes.begin(), bytes.end()}, 0, bytes.size());
    }
    call->HalfClose();
    return call;
  }

  static Cluster* cluster_;
  static BackwardRequest* request_;
  static Gradients* right_;
};

Cluster* BackwardFaultTest::cluster_ = nullptr;
BackwardRequest* BackwardFaultTest::request_ = nullptr;
Gradients* BackwardFaultTest::right_ = nullptr;

TEST_F(BackwardFaultTest, AKilledWorkerEndsTheAttemptAndSaysThatAnotherIsWorthIt) {
  for (const int step : {0, 1}) {
    const std::string id = absl::StrCat("killed-", step);
    std::future<absl::StatusOr<Gradients>> answer =
        std::async(std::launch::async, [&] { return Ask(id, {.max_attempts = 1}); });
    const int victim = AwaitStep(id, step);
    ASSERT_GE(victim, 0);
    cluster_->worker(victim).Kill();
    const absl::Status status = answer.get().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_TRUE(RetryAfter(status).has_value()) << status;
    ASSERT_NO_FATAL_FAILURE(Heal(victim));
  }
}

TEST_F(BackwardFaultTest, TheClientsNextAttemptSucceedsOnTheOthers) {
  std::future<absl::StatusOr<Gradients>> answer =
      std::async(std::launch::async, [&] { return Ask("again"); });
  const int victim = AwaitStep("again", 1);
  ASSERT_GE(victim, 0);
  cluster_->worker(victim).Kill();
  const absl::StatusOr<Gradients> gradients = answer.get();
  ASSERT_NO_FATAL_FAILURE(ExpectRight(gradients));
  EXPECT_EQ(gradients->attempts, 2);
  ASSERT_NO_FATAL_FAILURE(Heal(victim));
}

TEST_F(BackwardFaultTest, ACancelFreesEverythingAndDisturbsNobody) {
  for (const int step : {0, 1}) {
    const std::string id = absl::StrCat("cancelled-", step);
    const std::unique_ptr<RawCall> call = Begin(id, 3 * kPatience);
    ASSERT_GE(AwaitStep(id, step), 0);
    call->Cancel();
    EXPECT_EQ(call->Finish().code(), absl::StatusCode::kCancelled);
    ASSERT_NO_FATAL_FAILURE(ExpectRight(Ask(absl::StrCat("after-", id), {.max_attempts = 1})));
  }
}

// How long it takes to get there is not known: a deadline that came too early is followed by a
// longer one.
TEST_F(BackwardFaultTest, APassedDeadlineFreesEverythingAndDisturbsNobody) {
  bool hit = false;
  for (milliseconds deadline(200); deadline < kPatience && !hit; deadline *= 2) {
    const std::string id = absl::StrCat("late-", deadline.count());
    const std::unique_ptr<RawCall> call = Begin(id, deadline);
    const absl::Status status = call->Finish();
    if (status.ok()) break;
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    const std::string request = absl::StrCat("request=", id);
    ASSERT_TRUE(cluster_->server().WaitForLogLine({"state=ended ", request}));
    hit = cluster_->server()
              .WaitForLogLine({"state=running ", request}, 0, milliseconds(1))
              .has_value();
  }
  EXPECT_TRUE(hit);
  ASSERT_NO_FATAL_FAILURE(ExpectRight(Ask("after-late", {.max_attempts = 1})));
}

}  // namespace
}  // namespace ringserve::test
