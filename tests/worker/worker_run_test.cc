// Worker processes under a good coordinator: every job's rows are right, wherever its ranks are.
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/integration/process_facts.h"
#include "tests/support/random_case.h"
#include "tests/worker/job.h"

namespace ringserve::test {
namespace {

using ::testing::Each;

v1::AttentionOptions Over(int workers) {
  v1::AttentionOptions options;
  options.set_workers(workers);
  return options;
}

TEST(WorkerRun, AnswersRandomJobsAsTheOracleDoes) {
  FakeCluster cluster(3);
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    const Case c = RandomCase(seed, 3, 300);
    const Job job(cluster, c.spec, c.options, seed, c.gain);
    ASSERT_EQ(job.RunOn(cluster), "") << c.ToString();
  }
}

TEST(WorkerRun, ServesShardsOfSeveralMegabytesAndCountsTheirBytes) {
  FakeCluster cluster(3);
  for (const v1::RotateMethod rotate :
       {v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_GATHER, v1::ROTATE_METHOD_PASS_Q}) {
    v1::AttentionOptions options = Over(3);
    options.set_rotate(rotate);
    options.set_balancer(v1::BALANCER_HEAD_TAIL);
    const Job job(cluster, MakeSpec(v1::DTYPE_F32, 64, 64, 250, 128, true), options, 1);
    Tensors tensors = job.Fresh();
    std::vector<v1::RankStatistics> statistics;
    ASSERT_TRUE(cluster.Run(job.plan(), tensors, &statistics).ok());
    EXPECT_EQ(job.WhatIsWrong(tensors), "");
    uint64_t received = 0;
    for (int rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(statistics[rank].bytes_sent(), job.plan().bytes_sent[rank]);
      EXPECT_GT(statistics[rank].bytes_sent(), 4u << 20);
      EXPECT_GT(statistics[rank].tiles(), 0u);
      EXPECT_EQ(statistics[rank].worker(), absl::StrCat("w", rank));
      received += statistics[rank].bytes_received();
    }
    EXPECT_EQ(received, std::accumulate(job.plan().bytes_sent.begin(), job.plan().bytes_sent.end(),
                                        uint64_t{0}));
  }
}

TEST(WorkerRun, BindsRanksToAnyMembersInAnyOrder) {
  FakeCluster cluster(3);
  for (const std::vector<int>& members : {std::vector<int>{2, 0, 1}, {1, 0}, {2, 1}, {0, 2}, {2}}) {
    const Job job(cluster, MakeSpec(v1::DTYPE_F32, 4, 2, 501, 64, true),
                  Over(static_cast<int>(members.size())), 7);
    HeldCalls calls(cluster, job, members);
    calls.Start("e1");
    Tensors tensors = job.Fresh();
    ASSERT_THAT(calls.Collect(job, tensors), Each(absl::OkStatus()));
    EXPECT_EQ(job.WhatIsWrong(tensors), "");
  }
}

// Uploads of several jobs lie side by side. Jobs on disjoint workers run at the same time.
TEST(WorkerRun, KeepsJobsApartThatWaitAtTheSameTime) {
  FakeCluster cluster(3);
  const Job wide(cluster, MakeSpec(v1::DTYPE_BF16, 2, 1, 700, 64, true), Over(3), 1);
  const Job pair(cluster, MakeSpec(v1::DTYPE_F32, 2, 2, 400, 32, false), Over(2), 2);
  const Job single(cluster, MakeSpec(v1::DTYPE_F64, 1, 1, 100, 16, true), Over(1), 3);
  HeldCalls first(cluster, wide, {0, 1, 2}), second(cluster, pair, {1, 2}),
      third(cluster, single, {0}), fourth(cluster, wide, {2, 1, 0});
  const auto expect_right = [](HeldCalls& calls, const Job& job) {
    Tensors tensors = job.Fresh();
    ASSERT_THAT(calls.Collect(job, tensors), Each(absl::OkStatus()));
    EXPECT_EQ(job.WhatIsWrong(tensors), "");
  };
  second.Start("e1");
  third.Start("e1");
  expect_right(second, pair);
  expect_right(third, single);
  fourth.Start("e1");
  expect_right(fourth, wide);
  first.Start("e1");
  expect_right(first, wide);
}

TEST(WorkerRun, FinishesAnOldEpochsJobsBesideThoseOfTheNewOne) {
  FakeCluster cluster(2);
  const Job job(cluster, MakeSpec(v1::DTYPE_F32, 2, 2, 600, 64, true), Over(2), 4);
  HeldCalls old_calls(cluster, job, {0, 1});
  ASSERT_TRUE(cluster.NextEpoch("e2"));
  EXPECT_EQ(job.RunOn(cluster), "");
  old_calls.Start("e1");
  Tensors tensors = job.Fresh();
  ASSERT_THAT(old_calls.Collect(job, tensors), Each(absl::OkStatus()));
  EXPECT_EQ(job.WhatIsWrong(tensors), "");
  for (int i = 0; i < 2; ++i) cluster.member(i).Fence("e1");
  EXPECT_EQ(job.RunOn(cluster), "");
}

TEST(WorkerRun, AnswersTheSameBitsEveryTime) {
  FakeCluster cluster(2);
  const Job job(cluster, MakeSpec(v1::DTYPE_BF16, 4, 2, 777, 64, true), Over(2), 5);
  Tensors first = job.Fresh(), second = job.Fresh();
  ASSERT_TRUE(cluster.Run(job.plan(), first).ok());
  ASSERT_TRUE(cluster.Run(job.plan(), second).ok());
  EXPECT_TRUE(first.out == second.out && first.lse == second.lse);
}

TEST(WorkerRun, GivesTheMemoryOfItsJobsBack) {
  FakeCluster cluster(2);
  const v1::AttentionSpec spec = MakeSpec(v1::DTYPE_F32, 64, 64, 512, 128, true);  // 16 MiB each
  const Job job(cluster, spec, Over(2), 6);
  std::vector<uint64_t> before;
  for (int round = 0; round < 4; ++round) {
    Tensors tensors = job.Fresh();
    ASSERT_TRUE(cluster.Run(job.plan(), tensors).ok());
    for (int i = 0; i < 2; ++i) {
      const pid_t pid = cluster.worker(i).pid();
      if (round == 0) {
        // What the first job leaves for good: LibTorch's and gRPC's own.
        EXPECT_TRUE(WaitUntil([&] { return ResidentBytes(pid) < 400u << 20; }));
        before.push_back(ResidentBytes(pid));
      } else {
        EXPECT_TRUE(WaitUntil([&] { return ResidentBytes(pid) < before[i] + (32u << 20); }))
            << ResidentBytes(pid) << " bytes, " << before[i] << " after the first job";
      }
    }
  }
}

}  // namespace
}  // namespace ringserve::test
