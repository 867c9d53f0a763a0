// Attention as callers get it: the client library, a server and its workers, judged by the oracle.
#include <set>
#include <span>
#include <string>
#include <type_traits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "ringserve/merge.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/request.h"
#include "tests/support/cluster_fixture.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;

constexpr int kWorkers = 4;

class AttendTest : public ClusterTest {
 protected:
  static void SetUpTestSuite() {
    Start({.workers = kWorkers, .worker_flags = {"--memory-bytes", "256MiB"}});
  }
};

void ExpectRight(const Request& request, const absl::StatusOr<Answer>& answer) {
  ASSERT_TRUE(answer.ok()) << answer.status() << "\n" << request.header().ShortDebugString();
  EXPECT_EQ(request.WhatIsWrong(*answer), "") << request.header().ShortDebugString();
  EXPECT_EQ(answer->attempts, 1);
}

TEST_F(AttendTest, TakesFewerTokensThanWorkers) {
  for (const auto& [q_len, kv_len] : {std::pair{1, 1}, {1, 1000}, {1000, 1}, {2, 3}, {3, 2}}) {
    for (const auto rotate :
         {v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_GATHER, v1::ROTATE_METHOD_PASS_Q}) {
      v1::AttendHeader header = MakeHeader(MakeSpec(q_len, kv_len, 4, 8, 12), "", kWorkers);
      header.mutable_options()->set_rotate(rotate);
      const Request request(header, q_len + kv_len);
      ExpectRight(request, request.AskOf(client()));
    }
  }
}

TEST_F(AttendTest, AlignsACausalMaskAtTheEnd) {
  for (const auto& [q_len, kv_len] : {std::pair{5, 1000}, {1000, 5}, {257, 1025}}) {
    for (int workers = 1; workers <= kWorkers; ++workers) {
      v1::AttendHeader header = MakeHeader(MakeSpec(q_len, kv_len, 8, 16, 16), "", workers);
      header.mutable_spec()->set_batch(2);
      header.mutable_spec()->set_kv_heads(2);
      header.mutable_spec()->add_masks()->set_causal(true);
      header.mutable_spec()->mutable_masks(0)->set_bottom_right(true);
      const Request request(header, 7);
      ExpectRight(request, request.AskOf(client()));
    }
  }
}

TEST_F(AttendTest, MovesTensorsOfManyMessages) {
  // 24 MiB in, 8 MiB out, many segments and chunks; both directions need back pressure.
  for (const auto layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
    v1::AttendHeader header = MakeHeader(MakeSpec(2049, 4099, 16, 64, 64), "", 3);
    header.mutable_spec()->set_kv_heads(8);
    header.mutable_spec()->set_tensor_layout(layout);
    header.mutable_spec()->add_masks()->set_causal(true);
    header.mutable_spec()->mutable_masks(0)->set_bottom_right(true);
    header.mutable_options()->set_balancer(v1::BALANCER_HEAD_TAIL);
    const Request request(header, 11);
    const absl::StatusOr<Answer> answer = request.AskOf(client());
    ExpectRight(request, answer);
    if (answer.ok()) {
      EXPECT_EQ(WhatIsWrongWithStatistics(request.header(), answer->statistics), "");
    }
  }
}

TEST_F(AttendTest, LetsQueriesTravelAndCountsTheirBytes) {
  for (const auto layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
    v1::AttendHeader header = MakeHeader(MakeSpec(300, 5'000, 8, 64, 48), "", 3);
    header.mutable_spec()->set_kv_heads(2);
    header.mutable_spec()->set_tensor_layout(layout);
    header.mutable_spec()->add_masks()->set_causal(true);
    header.mutable_spec()->mutable_masks(0)->set_bottom_right(true);
    header.mutable_options()->set_rotate(v1::ROTATE_METHOD_PASS_Q);
    const Request request(header, 12);
    const absl::StatusOr<Answer> answer = request.AskOf(client());
    ExpectRight(request, answer);
    ASSERT_TRUE(answer.ok());
    EXPECT_EQ(answer->statistics.plan().rotate(), v1::ROTATE_METHOD_PASS_Q);
    EXPECT_EQ(WhatIsWrongWithStatistics(request.header(), answer->statistics), "");
  }
}

TEST_F(AttendTest, GivesTheSameBitsForTheSamePlan) {
  v1::AttendHeader header = MakeHeader(MakeSpec(500, 500, 4, 32, 32), "", 3);
  header.mutable_spec()->add_masks()->set_causal(true);
  const Request request(header, 3);
  const absl::StatusOr<Answer> first = request.AskOf(client()), second = request.AskOf(client());
  ExpectRight(request, first);
  ExpectRight(request, second);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->out, second->out);
  EXPECT_EQ(first->lse, second->lse);
}

TEST_F(AttendTest, PartialsOfTwoCallsMergeToTheAnswerOfOne) {
  constexpr int64_t kQueries = 120, kKeys = 200;
  for (const auto layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
    v1::AttendHeader header = MakeHeader(MakeSpec(kQueries, kKeys, 4, 32, 24), "", 2);
    header.mutable_spec()->set_batch(2);
    header.mutable_spec()->set_tensor_layout(layout);
    const auto over = [&](int64_t k_begin, int64_t k_end) {  // causal, of these keys alone
      v1::AttendHeader part = header;
      v1::Slice& slice = *part.mutable_spec()->add_masks()->add_slices();
      slice.set_q_end(kQueries);
      slice.set_k_begin(k_begin);
      slice.set_k_end(k_end);
      slice.set_hi(60);
      return Request(part, 13);
    };
    const Request whole = over(0, kKeys);
    absl::StatusOr<Answer> merged = over(0, 90).AskOf(client());
    const absl::StatusOr<Answer> other = over(90, kKeys).AskOf(client());
    ASSERT_TRUE(merged.ok() && other.ok()) << merged.status() << other.status();
    EXPECT_NE(whole.WhatIsWrong(*merged), "");
    const auto floats = [](auto& bytes) {
      using Float = std::conditional_t<std::is_const_v<std::remove_reference_t<decltype(bytes)>>,
                                       const float, float>;
      return std::span<Float>(reinterpret_cast<Float*>(bytes.data()), bytes.size() / sizeof(float));
    };
    const absl::Status status = MergePartials(
        {.batch = 2, .heads = 4, .queries = kQueries, .value_dim = 24, .layout = layout},
        {floats(merged->out), floats(merged->lse)}, {floats(other->out), floats(other->lse)});
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(whole.WhatIsWrong(*merged), "");
  }
}

TEST_F(AttendTest, RunsAJobOfSomeWorkersBesideOneOfTheOthers) {
  // Both are held between reservation and start; each must end although the other does not.
  const Request request(MakeHeader(MakeSpec(64, 64, 2, 8, 8), "", 2), 5);
  RawCall first(NewChannel(cluster_->address())), second(NewChannel(cluster_->address()));
  ASSERT_TRUE(first.SendHeader(request.Named("first", 2)) && first.AwaitAccepted());
  ASSERT_TRUE(second.SendHeader(request.Named("second", 2)) && second.AwaitAccepted());
  for (RawCall* call : {&second, &first}) {
    ASSERT_TRUE(call->SendTensors(request) && call->HalfClose());
    const absl::StatusOr<Answer> answer = call->Collect(request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(request.WhatIsWrong(*answer), "");
  }
}

TEST_F(AttendTest, ASlowUploaderBlocksNobody) {
  const Request request(MakeHeader(MakeSpec(64, 64, 2, 8, 8), "", kWorkers), 5);
  RawCall slow(NewChannel(cluster_->address()));
  ASSERT_TRUE(slow.SendHeader(request.Named("slow", kWorkers)) && slow.AwaitAccepted());
  ASSERT_TRUE(slow.SendBytes(v1::TENSOR_ID_Q, request.tensors().q, 0, 100));
  for (int i = 0; i < 3; ++i) ExpectRight(request, request.AskOf(client()));
  ASSERT_TRUE(
      slow.SendBytes(v1::TENSOR_ID_Q, request.tensors().q, 100, request.tensors().q.size()));
  ASSERT_TRUE(slow.SendBytes(v1::TENSOR_ID_V, request.tensors().v, 0, request.tensors().v.size()));
  ASSERT_TRUE(slow.SendBytes(v1::TENSOR_ID_K, request.tensors().k, 0, request.tensors().k.size()));
  ASSERT_TRUE(slow.HalfClose());
  const absl::StatusOr<Answer> answer = slow.Collect(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(request.WhatIsWrong(*answer), "");
}

TEST_F(AttendTest, QueuesWhatDoesNotFitAndRunsItWhenThereIsRoom) {
  // Each takes more than half of the workers' memory; all ranks hold as much.
  v1::AttendHeader header = MakeHeader(MakeSpec(1, 32, 1, 8, 8), "big-1", kWorkers);
  v1::PlanRequest plan;
  for (int64_t q_len = 1 << 16;; q_len *= 2) {
    header.mutable_spec()->set_q_len(q_len);
    *plan.mutable_spec() = header.spec();
    *plan.mutable_options() = header.options();
    const absl::StatusOr<v1::PlanResponse> planned = client().Plan(plan);
    ASSERT_TRUE(planned.ok()) << planned.status();
    if (planned->plan().peak_bytes(0) > (128 << 20)) break;
  }
  RawCall first(NewChannel(cluster_->address()));
  ASSERT_TRUE(first.SendHeader(header) && first.AwaitAccepted());
  header.set_request_id("big-2");
  RawCall second(NewChannel(cluster_->address()));
  ASSERT_TRUE(second.SendHeader(header));
  EXPECT_TRUE(WaitUntil([&] {
    const absl::StatusOr<v1::GetClusterResponse> now = client().GetCluster();
    return now.ok() && now->queued_jobs() == 1 && now->unfinished_jobs() == 1;
  }));
  // What is small still fits: it waits behind nobody's memory but its own.
  const Request small(MakeHeader(MakeSpec(64, 64, 2, 8, 8), "", 2), 5);
  first.Cancel();
  EXPECT_EQ(first.Finish().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(second.AwaitAccepted());
  second.Cancel();
  EXPECT_EQ(second.Finish().code(), absl::StatusCode::kCancelled);
  ExpectRight(small, small.AskOf(client()));
}

TEST_F(AttendTest, RefusesWhatIsNotServedNamingTheField) {
  const auto refused = [&](const std::function<void(v1::AttendHeader&)>& change,
                           const std::string& field) {
    v1::AttendHeader header = MakeHeader(MakeSpec(8, 8, 2, 8, 8), "", 0);
    change(header);
    RawCall call(NewChannel(cluster_->address()));
    call.SendHeader(header);
    const absl::Status status = call.Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
    v1::PlanRequest plan;
    *plan.mutable_spec() = header.spec();
    *plan.mutable_options() = header.options();
    if (!header.session().empty()) return;
    EXPECT_EQ(client().Plan(plan).status().code(), absl::StatusCode::kUnimplemented) << field;
  };
  using Header = v1::AttendHeader;
  refused([](Header& h) { h.mutable_spec()->set_softcap(30); }, "spec.softcap");
  refused([](Header& h) { h.mutable_spec()->set_dropout(0.5); }, "spec.dropout");
  refused([](Header& h) { h.mutable_options()->set_convert_to_f32(false); },
          "options.convert_to_f32");
  refused([](Header& h) { h.set_session("mine"); }, "session");
}

TEST_F(AttendTest, PlansForMoreWorkersThanThereAre) {
  v1::PlanRequest request;
  *request.mutable_spec() = MakeSpec(100'000, 100'000, 8, 128, 128);
  request.mutable_spec()->add_masks()->set_causal(true);
  request.mutable_options()->set_workers(64);
  request.mutable_options()->set_balancer(v1::BALANCER_HEAD_TAIL);
  const absl::StatusOr<v1::PlanResponse> planned = client().Plan(request);
  ASSERT_TRUE(planned.ok()) << planned.status();
  EXPECT_EQ(planned->plan().workers(), 64);
  EXPECT_EQ(planned->plan().work_size(), 64);
  EXPECT_EQ(planned->ranks_size(), 64);
  EXPECT_NE(planned->description(), "");
  const uint64_t visible = 100'000ull * 100'001 / 2;
  uint64_t work = 0;
  for (int rank = 0; rank < planned->ranks_size(); ++rank) {
    uint64_t of_steps = 0, bytes = 0;
    for (const auto& step : planned->ranks(rank).steps()) {
      of_steps += step.work();
      bytes += step.bytes_sent();
    }
    EXPECT_EQ(of_steps, planned->plan().work(rank));
    EXPECT_EQ(bytes, planned->plan().bytes(rank));
    work += of_steps;
  }
  EXPECT_EQ(work, visible);
  EXPECT_LT(planned->plan().imbalance(), 1.05);
}

TEST_F(AttendTest, PlansWhatItThenDoes) {
  v1::AttendHeader header = MakeHeader(MakeSpec(777, 777, 4, 16, 16), "", 3);
  header.mutable_spec()->add_masks()->set_causal(true);
  v1::PlanRequest dry_run;
  *dry_run.mutable_spec() = header.spec();
  *dry_run.mutable_options() = header.options();
  const absl::StatusOr<v1::PlanResponse> planned = client().Plan(dry_run);
  ASSERT_TRUE(planned.ok()) << planned.status();
  const Request request(header, 9);
  const absl::StatusOr<Answer> answer = request.AskOf(client());
  ExpectRight(request, answer);
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ(answer->statistics.plan().SerializeAsString(), planned->plan().SerializeAsString());
}

TEST_F(AttendTest, RefusesMoreWorkersThanThereAreAtOnce) {
  const Request request(MakeHeader(MakeSpec(16, 16, 1, 8, 8), "", kWorkers + 1), 1);
  int retries = 0;
  const absl::StatusOr<Answer> answer =
      request.AskOf(client(), {.on_retry = [&](int, const absl::Status&) { ++retries; }});
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kUnavailable) << answer.status();
  EXPECT_THAT(std::string(answer.status().message()), HasSubstr("options.workers"));
  EXPECT_EQ(retries, 0);
}

TEST_F(AttendTest, RefusesWhatItCanNeverTakeSayingTheLimit) {
  RawCall call(NewChannel(cluster_->address()));
  // 4 TiB of q: well formed, and far beyond the workers' memory.
  ASSERT_TRUE(call.SendHeader(MakeHeader(MakeSpec(1ll << 30, 1 << 20, 8, 128, 128), "", 0)));
  const absl::Status status = call.Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(256 << 20)));
}

TEST_F(AttendTest, DescribesTheCluster) {
  const absl::StatusOr<v1::GetClusterResponse> cluster = client().GetCluster();
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  EXPECT_NE(cluster->version(), "");
  EXPECT_NE(cluster->epoch(), "");
  EXPECT_FALSE(cluster->draining());
  ASSERT_EQ(cluster->workers_size(), kWorkers);
  std::set<std::string> ids, addresses;
  std::set<int64_t> pids, expected_pids;
  for (int i = 0; i < kWorkers; ++i) {
    const v1::Worker& worker = cluster->workers(i);
    ids.insert(worker.id());
    addresses.insert(worker.address());
    pids.insert(worker.pid());
    expected_pids.insert(cluster_->worker(i).pid());
    EXPECT_EQ(worker.device(), "cpu");
    EXPECT_EQ(worker.threads(), 1);
    EXPECT_EQ(worker.memory_bytes(), 256u << 20);
    EXPECT_EQ(worker.version(), cluster->version());
    EXPECT_NE(worker.libtorch(), "");
    EXPECT_LT(worker.silent_seconds(), 1.0 * kSlowness);
  }
  EXPECT_EQ(ids.size(), static_cast<size_t>(kWorkers));
  EXPECT_EQ(addresses.size(), static_cast<size_t>(kWorkers));
  EXPECT_EQ(pids, expected_pids);
  EXPECT_GT(cluster->limits().max_queued_jobs(), 0);
  EXPECT_EQ(cluster->limits().max_header_bytes(), 4u << 20);
  EXPECT_EQ(cluster->limits().max_message_bytes(), 4u << 20);
  EXPECT_GT(cluster->limits().max_deadline_seconds(), 0);
  EXPECT_GT(cluster->limits().min_rate_bytes_per_second(), 0);
  EXPECT_GT(cluster->measurements().pairs_per_second(), 0);
  EXPECT_GT(cluster->measurements().link_bytes_per_second(), 0);
}

}  // namespace
}  // namespace ringserve::test
