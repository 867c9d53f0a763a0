// Jobs that are cancelled, broken or dropped, in every state: what was taken is given back, and the
// others of the ring never notice.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/worker/job.h"

namespace ringserve::test {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;

v1::AttentionOptions Over(int workers) {
  v1::AttentionOptions options;
  options.set_workers(workers);
  return options;
}

// Workers that have room for one job at a time.
class OneAtATime : public ::testing::Test {
 protected:
  static constexpr uint64_t kMemory = 40 << 20;

  void SetUp() override {
    for (const uint64_t peak : job_.plan().peak_bytes) {
      ASSERT_LT(peak, kMemory);
      ASSERT_GT(2 * peak, kMemory);
    }
  }

  std::vector<std::unique_ptr<RankCall>> Assigned() { return cluster_.Open(job_.plan()); }

  FakeCluster cluster_{2, {"--memory-bytes", absl::StrCat(kMemory)}};
  const Job job_{cluster_, MakeSpec(v1::DTYPE_F32, 40, 40, 300, 128, true), Over(2), 1};
};

TEST_F(OneAtATime, RefusesAReservationThatTheCoordinatorShouldNotHaveMade) {
  HeldCalls held(cluster_, job_, {0, 1});
  const auto calls = Assigned();
  for (const auto& call : calls) {
    EXPECT_EQ(call->Finish().code(), StatusCode::kResourceExhausted);
  }
}

TEST_F(OneAtATime, GivesTheMemoryBackWhenTheCallBreaksBeforeTheStart) {
  const Tensors tensors = job_.Fresh();
  for (const char* state : {"assigned", "uploading", "ready"}) {
    {
      const auto calls = Assigned();
      for (const auto& call : calls) {
        if (state == std::string("uploading")) {
          ASSERT_TRUE(call->Upload(v1::TENSOR_ID_Q, tensors.q.substr(0, 1 << 20)));
        } else if (state == std::string("ready")) {
          ASSERT_TRUE(call->UploadShards(job_.plan(), tensors));
          ASSERT_TRUE(call->AwaitReady());
        }
      }
    }  // broken
    EXPECT_EQ(job_.RunOn(cluster_), "") << "after a call that was broken when " << state;
  }
}

TEST_F(OneAtATime, GivesTheMemoryBackWhenCancelledBeforeTheStart) {
  const Tensors tensors = job_.Fresh();
  for (const bool ready : {false, true}) {
    const auto calls = Assigned();
    for (const auto& call : calls) {
      if (ready) {
        ASSERT_TRUE(call->UploadShards(job_.plan(), tensors));
        ASSERT_TRUE(call->AwaitReady());
      }
      ASSERT_TRUE(call->Cancel());
      EXPECT_EQ(call->Finish().code(), StatusCode::kCancelled);
    }
    EXPECT_EQ(job_.RunOn(cluster_), "");
  }
}

// A client that does not read: its rows wait in the worker, and so does the next job's reservation.
TEST_F(OneAtATime, GivesTheMemoryBackWhenTheCallBreaksWhileRowsAreOnTheirWay) {
  {
    HeldCalls calls(cluster_, job_, {0, 1});
    calls.Start("e1");
    ASSERT_TRUE(cluster_.worker(0).WaitForLog(absl::StrCat("state=downloading job=", calls.id())));
    ASSERT_TRUE(cluster_.worker(1).WaitForLog(absl::StrCat("state=downloading job=", calls.id())));
  }
  EXPECT_EQ(job_.RunOn(cluster_), "");
}

// One rank of a running job is cancelled, or its call breaks: the other's rows are right all the
// same.
TEST(WorkerCancel, OfARunningRankStillPerformsEveryExchange) {
  FakeCluster cluster(3);
  const Job job(cluster, MakeSpec(v1::DTYPE_F32, 1, 1, 15'000, 64, false), Over(3), 2);
  Tensors reference = job.Fresh();
  ASSERT_TRUE(cluster.Run(job.plan(), reference).ok());
  for (const bool broken : {false, true}) {
    HeldCalls calls(cluster, job, {0, 1, 2});
    calls.Start("e1");
    ASSERT_TRUE(cluster.worker(1).WaitForLog(absl::StrCat("step=0/3 job=", calls.id())));
    if (broken) {
      calls.rank(1).Break();
    } else {
      calls.rank(1).Cancel();
    }
    Tensors tensors = job.Fresh();
    const std::vector<absl::Status> ends = calls.Collect(job, tensors);
    EXPECT_TRUE(ends[0].ok()) << ends[0];
    EXPECT_TRUE(ends[2].ok()) << ends[2];
    EXPECT_EQ(ends[1].code(), broken ? StatusCode::kCancelled : StatusCode::kAborted);
    EXPECT_EQ(job.WhatIsWrongInPart(tensors, reference, tensors.out.size() / 2), "");
    Tensors again = job.Fresh();
    ASSERT_TRUE(cluster.Run(job.plan(), again).ok());
    EXPECT_TRUE(again.out == reference.out);
  }
}

// The others wait for partials of the one that was cancelled: they get them, and can go on.
TEST(WorkerCancel, OfARunningRankOfPassQStillPerformsEveryExchange) {
  FakeCluster cluster(3);
  v1::AttentionOptions options = Over(3);
  options.set_rotate(v1::ROTATE_METHOD_PASS_Q);
  const Job job(cluster, MakeSpec(v1::DTYPE_F32, 1, 1, 15'000, 64, false), options, 2);
  Tensors reference = job.Fresh();
  ASSERT_TRUE(cluster.Run(job.plan(), reference).ok());
  for (int step = 0; step < 3; ++step) {
    HeldCalls calls(cluster, job, {0, 1, 2});
    calls.Start("e1");
    ASSERT_TRUE(cluster.worker(1).WaitForLog(absl::StrCat("step=", step, "/4 job=", calls.id())));
    calls.rank(1).Cancel();
    Tensors tensors = job.Fresh();
    const std::vector<absl::Status> ends = calls.Collect(job, tensors);
    EXPECT_TRUE(ends[0].ok()) << ends[0];
    EXPECT_EQ(ends[1].code(), StatusCode::kAborted);
    EXPECT_TRUE(ends[2].ok()) << ends[2];
    Tensors again = job.Fresh();
    ASSERT_TRUE(cluster.Run(job.plan(), again).ok());
    EXPECT_TRUE(again.out == reference.out);
  }
}

TEST(WorkerCancel, OfAllRanksEndsSoonerThanTheArithmetic) {
  FakeCluster cluster(2);
  const Job job(cluster, MakeSpec(v1::DTYPE_F32, 2, 2, 16'000, 64, false), Over(2), 3);
  HeldCalls calls(cluster, job, {0, 1});
  calls.Start("e1");
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(cluster.worker(i).WaitForLog(absl::StrCat("step=0/2 job=", calls.id())));
  }
  for (int r = 0; r < 2; ++r) calls.rank(r).Cancel();
  Tensors tensors = job.Fresh();
  for (const absl::Status& end : calls.Collect(job, tensors)) {
    EXPECT_EQ(end.code(), StatusCode::kAborted);
  }
}

TEST(WorkerCancel, AFenceFailsTheJobsOfItsEpochAndNoOthers) {
  FakeCluster cluster(2);
  const Job job(cluster, MakeSpec(v1::DTYPE_F32, 1, 1, 15'000, 64, false), Over(2), 4);
  Tensors reference = job.Fresh();
  ASSERT_TRUE(cluster.Run(job.plan(), reference).ok());
  HeldCalls running(cluster, job, {0, 1}), waiting(cluster, job, {0, 1});
  running.Start("e1");
  ASSERT_TRUE(cluster.worker(0).WaitForLog(absl::StrCat("step=0/2 job=", running.id())));
  for (int i = 0; i < 2; ++i) cluster.member(i).Fence("e1");
  Tensors tensors = job.Fresh();
  for (const absl::Status& end : running.Collect(job, tensors)) {
    EXPECT_EQ(end.code(), StatusCode::kUnavailable);
    EXPECT_THAT(std::string(end.message()), HasSubstr("e1"));
  }
  // Its upload survives the epoch: it is started in the next one.
  ASSERT_TRUE(cluster.NextEpoch("e2"));
  waiting.Start("e2");
  for (const absl::Status& end : waiting.Collect(job, tensors)) EXPECT_TRUE(end.ok()) << end;
  EXPECT_TRUE(tensors.out == reference.out);
}

}  // namespace
}  // namespace ringserve::test
