// A worker whose tensors are staged, from beginning to end. What it answers, and what it does when
// calls break, is tested with the other workers' tests, which run over it, too.
#include <signal.h>

#include <gtest/gtest.h>

#include "tests/worker/job.h"

namespace ringserve::test {
namespace {

TEST(WorkerStaged, GivesEverythingBack) {
  FakeCluster cluster(2);
  v1::AttentionOptions over;
  over.set_workers(2);
  for (const v1::DType dtype : {v1::DTYPE_F32, v1::DTYPE_BF16}) {
    const Job job(cluster, MakeSpec(dtype, 64, 8, 300, 128, true), over, 1);
    EXPECT_EQ(job.RunOn(cluster), "");
    const auto broken = cluster.Open(job.plan());
    ASSERT_TRUE(broken[0]->Upload(v1::TENSOR_ID_Q, job.Fresh().q.substr(0, 1'000'000)));
  }
  for (int i = 0; i < 2; ++i) {
    cluster.worker(i).Signal(SIGTERM);
    ASSERT_TRUE(cluster.member(i).Await(
        [](const Member::Seen& seen) { return seen.messages.back().leaving(); }));
    cluster.member(i).End(grpc::Status::OK);
    EXPECT_EQ(cluster.worker(i).WaitForExit(), 0) << cluster.worker(i).log();
  }
}

}  // namespace
}  // namespace ringserve::test
