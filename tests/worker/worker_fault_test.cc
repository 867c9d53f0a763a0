// Workers that are killed and stopped at every step of a ring of three: the others end in time,
// with right rows or none, and serve on.
#include <signal.h>

#include <map>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/worker/job.h"

namespace ringserve::test {
namespace {

using absl::StatusCode;

constexpr int kWorkers = 3;

v1::AttentionOptions Ring(v1::RotateMethod rotate = v1::ROTATE_METHOD_ALL_TO_ALL) {
  v1::AttentionOptions options;
  options.set_workers(kWorkers);
  options.set_rotate(rotate);
  options.set_balancer(v1::BALANCER_CONTIGUOUS);
  return options;
}

bool SaysBroken(const Member::Seen& seen) {
  for (const auto& message : seen.messages) {
    if (!message.epoch_broken().empty()) return true;
  }
  return false;
}

// Long enough in every step that a signal finds its worker there; but for pass-Q's last one, which
// has nothing to compute.
class WorkerFault : public ::testing::TestWithParam<std::pair<v1::RotateMethod, int>> {
 protected:
  WorkerFault()
      : cluster_(kWorkers, {"--exchange-deadline-ms", absl::StrCat(1'000 * kSlowness)}),
        job_(cluster_, MakeSpec(v1::DTYPE_F32, 1, 1, 20'000, 64, false), Ring(GetParam().first), 1),
        reference_(Reference()) {}

  // What the method's ring gives undisturbed, bit for bit; the same from every cluster.
  const Tensors& Reference() {
    static std::map<v1::RotateMethod, Tensors> found;
    const auto [entry, missing] = found.try_emplace(GetParam().first);
    if (missing) {
      entry->second = job_.Fresh();
      EXPECT_TRUE(cluster_.Run(job_.plan(), entry->second).ok());
    }
    return entry->second;
  }

  // Lets the victim come to the step of the parameter, and strikes there.
  HeldCalls Strike(const std::function<void(Process&)>& strike) {
    const auto [rotate, step] = GetParam();
    const int steps = rotate == v1::ROTATE_METHOD_PASS_Q ? kWorkers + 1 : kWorkers;
    HeldCalls calls(cluster_, job_, {0, 1, 2});
    calls.Start("e1");
    const std::string suffix = absl::StrCat("/", steps, " job=", calls.id());
    EXPECT_TRUE(cluster_.worker(kVictim).WaitForLog(absl::StrCat("step=", step, suffix)));
    strike(cluster_.worker(kVictim));
    EXPECT_FALSE(
        absl::StrContains(cluster_.worker(kVictim).log(), absl::StrCat("step=", step + 1, suffix)))
        << "the victim was too quick";
    return calls;
  }

  // Ended well with right rows, or UNAVAILABLE.
  void ExpectRightOrUnavailable(HeldCalls& calls, int rank) {
    Tensors tensors = job_.Fresh();
    const absl::Status status = calls.rank(rank).Collect(job_.plan(), tensors);
    if (!status.ok()) {
      EXPECT_EQ(status.code(), StatusCode::kUnavailable) << "rank " << rank << ": " << status;
      return;
    }
    EXPECT_EQ(job_.WhatIsWrongInPart(tensors, reference_, tensors.out.size() / 3 - 1'000), "");
  }

  // The survivors form the next epoch, and run a job.
  void ExpectTheRestToServe() {
    const std::vector<std::string> rest = {cluster_.member(0).hello().address(),
                                           cluster_.member(2).hello().address()};
    cluster_.member(0).Fence("e1");
    cluster_.member(2).Fence("e1");
    cluster_.member(0).SendEpoch("e2", rest, 0);
    cluster_.member(2).SendEpoch("e2", rest, 1);
    ASSERT_TRUE(cluster_.member(0).AwaitEpochReady("e2"));
    ASSERT_TRUE(cluster_.member(2).AwaitEpochReady("e2"));
    v1::AttentionOptions options = Ring();
    options.set_workers(2);
    const Job job(cluster_, MakeSpec(v1::DTYPE_F32, 2, 2, 200, 64, true), options, 2);
    const Tensors inputs = job.Fresh();
    std::vector<std::unique_ptr<RankCall>> calls;
    for (const int worker : {0, 2}) {
      v1::Assignment assignment = AssignmentFor(job.plan(), worker / 2);
      assignment.set_job(77);
      calls.push_back(std::make_unique<RankCall>(cluster_.stub(worker), assignment));
      ASSERT_TRUE(calls.back()->Assign() && calls.back()->UploadShards(job.plan(), inputs) &&
                  calls.back()->AwaitReady());
    }
    for (const auto& call : calls) call->Start("e2", {0, 1});
    Tensors tensors = job.Fresh();
    for (const auto& call : calls) ASSERT_TRUE(call->Collect(job.plan(), tensors).ok());
    EXPECT_EQ(job.WhatIsWrong(tensors), "");
  }

  static constexpr int kVictim = 1;
  FakeCluster cluster_;
  const Job job_;
  const Tensors& reference_;
};

TEST_P(WorkerFault, ThatKillsAWorkerIsSeenByTheOthers) {
  HeldCalls calls = Strike([](Process& victim) { victim.Kill(); });
  ExpectRightOrUnavailable(calls, 0);
  ExpectRightOrUnavailable(calls, 2);
  EXPECT_EQ(calls.rank(1).Finish().code(), StatusCode::kUnavailable);
  ExpectTheRestToServe();
}

TEST_P(WorkerFault, ThatStopsAWorkerIsFoundByTheDeadline) {
  HeldCalls calls = Strike([](Process& victim) { victim.Stop(); });
  ExpectRightOrUnavailable(calls, 0);
  ExpectRightOrUnavailable(calls, 2);
  ExpectTheRestToServe();
  // When it wakes, its old epoch has ended around it: it has nothing to say any more.
  cluster_.worker(kVictim).Continue();
  ExpectRightOrUnavailable(calls, 1);
}

INSTANTIATE_TEST_SUITE_P(AtEveryStep, WorkerFault,
                         ::testing::Values(std::pair{v1::ROTATE_METHOD_ALL_TO_ALL, 0},
                                           std::pair{v1::ROTATE_METHOD_ALL_TO_ALL, 1},
                                           std::pair{v1::ROTATE_METHOD_ALL_TO_ALL, 2},
                                           std::pair{v1::ROTATE_METHOD_PASS_Q, 0},
                                           std::pair{v1::ROTATE_METHOD_PASS_Q, 1},
                                           std::pair{v1::ROTATE_METHOD_PASS_Q, 2},
                                           std::pair{v1::ROTATE_METHOD_PASS_Q, 3}),
                         [](const auto& info) {
                           const bool pass_q = info.param.first == v1::ROTATE_METHOD_PASS_Q;
                           return absl::StrCat(pass_q ? "PassQ" : "AllToAll", "Step",
                                               info.param.second);
                         });

// Whoever waits for a peer that was killed tells the coordinator, and does not wait for the
// deadline.
TEST(WorkerFaultReport, OfABrokenEpochGoesToTheCoordinatorAtOnce) {
  FakeCluster cluster(2, {"--exchange-deadline-ms", "600000"});
  const Job job(
      cluster, MakeSpec(v1::DTYPE_F32, 2, 2, 500, 64, false),
      [] {
        v1::AttentionOptions options = Ring();
        options.set_workers(2);
        return options;
      }(),
      3);
  ASSERT_EQ(job.RunOn(cluster), "");
  HeldCalls calls(cluster, job, {0, 1});
  calls.rank(0).Start("e1", {0, 1});  // and rank 1 never starts
  ASSERT_TRUE(cluster.worker(0).WaitForLog(absl::StrCat("step=0/2 job=", calls.id())));
  cluster.worker(1).Kill();
  EXPECT_TRUE(cluster.member(0).Await(SaysBroken));
  const absl::Status status = calls.rank(0).Finish();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(absl::StrContains(status.message(), "lost worker 1")) << status;
}

}  // namespace
}  // namespace ringserve::test
