#include "server/run_order.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using JobId = RunOrder::JobId;

// Everybody is in epoch "e", in the order of the workers' names.
std::optional<v1::Start> InOneEpoch(const std::vector<std::string>& workers) {
  v1::Start start;
  start.set_epoch("e");
  for (const std::string& worker : workers) start.add_members(worker[0] - 'a');
  return start;
}

std::optional<v1::Start> InNone(const std::vector<std::string>&) { return std::nullopt; }

std::vector<JobId> StartAll(RunOrder& order, const RunOrder::Bind& bind = InOneEpoch) {
  std::vector<JobId> ids;
  for (const RunOrder::Started& started : order.Start(bind)) ids.push_back(started.job);
  return ids;
}

RunOrder Ready(const std::vector<std::vector<std::string>>& jobs) {
  RunOrder order;
  JobId id = 0;
  for (const auto& workers : jobs) {
    order.Admit(++id, workers);
    order.Ready(id);
  }
  return order;
}

TEST(RunOrder, StartsAJobOnceItsInputIsThere) {
  RunOrder order;
  order.Admit(1, {"b", "a"});
  EXPECT_THAT(StartAll(order), IsEmpty());
  order.Ready(1);
  const std::vector<RunOrder::Started> started = order.Start(InOneEpoch);
  ASSERT_EQ(started.size(), 1u);
  EXPECT_EQ(started[0].start.epoch(), "e");
  EXPECT_THAT(started[0].start.members(), ElementsAre(1, 0));
  EXPECT_EQ(order.RunningOn("a"), 1u);
  order.Ready(1);
  EXPECT_THAT(StartAll(order), IsEmpty()) << "started twice";
}

TEST(RunOrder, RunsDisjointJobsSideBySideAndOthersOneAfterAnother) {
  RunOrder order = Ready({{"a", "b"}, {"c"}, {"b", "c"}, {"d"}});
  EXPECT_THAT(StartAll(order), ElementsAre(1, 2, 4));
  EXPECT_FALSE(order.RankIdle(1, 0));
  EXPECT_TRUE(order.RankIdle(2, 0));
  EXPECT_THAT(StartAll(order), IsEmpty()) << "b is still at work";
  EXPECT_TRUE(order.RankIdle(1, 1));
  EXPECT_THAT(StartAll(order), ElementsAre(3));
}

TEST(RunOrder, AnEarlierJobIsNotPassedByOnAWorkerThatItClaims) {
  RunOrder order = Ready({{"a"}, {"a", "b"}, {"b"}});
  EXPECT_THAT(StartAll(order), ElementsAre(1)) << "b idles for the second";
  order.RankIdle(1, 0);
  EXPECT_THAT(StartAll(order), ElementsAre(2));
  order.End(2);
  EXPECT_THAT(StartAll(order), ElementsAre(3));
}

TEST(RunOrder, TheOrderIsThatOfCompleteInputsNotOfAdmission) {
  RunOrder order;
  order.Admit(1, {"a"});
  order.Admit(2, {"a"});
  order.Ready(2);
  order.Ready(1);
  EXPECT_THAT(StartAll(order), ElementsAre(2));
}

TEST(RunOrder, AJobWithoutAnEpochClaimsNothingAndOneRankNeedsNone) {
  RunOrder order = Ready({{"a", "b"}, {"a"}});
  const std::vector<RunOrder::Started> started = order.Start(InNone);
  ASSERT_EQ(started.size(), 1u);
  EXPECT_EQ(started[0].job, 2u);
  EXPECT_EQ(started[0].start.epoch(), "");
  EXPECT_THAT(started[0].start.members(), ElementsAre(0));
  EXPECT_THAT(order.AwaitingEpoch(), ElementsAre(1));
  order.End(2);
  EXPECT_THAT(StartAll(order), ElementsAre(1));
  EXPECT_THAT(order.AwaitingEpoch(), IsEmpty());
}

TEST(RunOrder, AFailedJobNeverStartsButKeepsItsWorkersUntilTheyAreIdle) {
  RunOrder order = Ready({{"a", "b"}, {"a"}, {"b"}});
  EXPECT_THAT(StartAll(order), ElementsAre(1));
  order.Fail(1);
  order.Fail(2);
  EXPECT_THAT(StartAll(order), IsEmpty());
  EXPECT_FALSE(order.RankIdle(1, 0));
  EXPECT_THAT(StartAll(order), IsEmpty());
  order.End(1);
  EXPECT_THAT(StartAll(order), ElementsAre(3));
  order.Ready(2);
  EXPECT_THAT(StartAll(order), IsEmpty());
}

TEST(RunOrder, KnowsWhomALossConcerns) {
  RunOrder order = Ready({{"a", "b"}, {"c"}});
  EXPECT_THAT(StartAll(order), ElementsAre(1, 2));
  order.Admit(3, {"b", "c"});
  EXPECT_THAT(order.Involving("b"), ElementsAre(1, 3));
  EXPECT_THAT(order.RunningIn("e"), ElementsAre(1)) << "one rank is bound to no epoch";
  EXPECT_TRUE(order.Uses("e"));
  EXPECT_FALSE(order.Uses("f"));
  EXPECT_TRUE(order.Occupies("c"));
  EXPECT_EQ(order.EpochOf(1), "e");
  EXPECT_EQ(order.EpochOf(2), "");
  order.Fail(1);
  EXPECT_THAT(order.Involving("b"), ElementsAre(3));
  EXPECT_THAT(order.RunningIn("e"), IsEmpty());
  EXPECT_TRUE(order.Uses("e")) << "its exchanges may go on";
  order.RankIdle(1, 0);
  EXPECT_TRUE(order.Uses("e"));
  order.RankIdle(1, 1);
  EXPECT_FALSE(order.Uses("e")) << "rows that are final need it no more";
  order.End(1);
  order.End(2);
  order.Ready(3);
  EXPECT_THAT(StartAll(order), ElementsAre(3));
  EXPECT_THAT(order.RunningIn("e"), ElementsAre(3));
  order.RankIdle(3, 0);
  EXPECT_THAT(order.RunningIn("e"), ElementsAre(3));
  order.RankIdle(3, 1);
  EXPECT_THAT(order.RunningIn("e"), IsEmpty());
  EXPECT_TRUE(order.Occupies("c"));
  order.End(3);
  EXPECT_FALSE(order.Occupies("c"));
}

TEST(RunOrder, IgnoresWhatComesLateOrFromNobody) {
  RunOrder order;
  order.Ready(5);
  order.Fail(5);
  order.End(5);
  EXPECT_FALSE(order.RankIdle(5, 0));
  order.Admit(1, {"a"});
  EXPECT_FALSE(order.RankIdle(1, 0)) << "not started";
  order.Ready(1);
  StartAll(order);
  EXPECT_FALSE(order.RankIdle(1, -1));
  EXPECT_FALSE(order.RankIdle(1, 1));
  EXPECT_TRUE(order.RankIdle(1, 0));
  EXPECT_FALSE(order.RankIdle(1, 0)) << "idle twice";
  order.Admit(2, {"a"});
  order.Ready(2);
  EXPECT_THAT(StartAll(order), ElementsAre(2));
  EXPECT_FALSE(order.RankIdle(1, 0)) << "the worker is another's by now";
  EXPECT_EQ(order.RunningOn("a"), 2u);
}

// Random jobs: nobody runs two at a time, nobody is passed by, nobody waits for nothing.
class Soak {
 public:
  explicit Soak(int seed) : random_(seed) {}

  void Run(int events) {
    for (int i = 0; i < events && !::testing::Test::HasFailure(); ++i) Step();
    epoch_ = true;
    while (!jobs_.empty() && !::testing::Test::HasFailure()) {
      Start();
      End(jobs_.begin()->first);
    }
    for (const char* worker : {"a", "b", "c", "d"}) EXPECT_FALSE(order_.Occupies(worker));
  }

 private:
  struct Job {
    std::vector<std::string> workers;
    std::set<int> running;
    bool ready = false, failed = false, started = false;
  };

  int Pick(int n) { return std::uniform_int_distribution<int>(0, n - 1)(random_); }

  void Step() {
    if (jobs_.size() < 8) {
      Job job;
      for (const char* worker : {"a", "b", "c", "d"}) {
        if (Pick(2) == 0) job.workers.push_back(worker);
      }
      std::shuffle(job.workers.begin(), job.workers.end(), random_);
      if (!job.workers.empty()) {
        order_.Admit(++last_, job.workers);
        jobs_[last_] = job;
      }
    }
    if (jobs_.empty()) return;
    auto& [id, job] = *std::next(jobs_.begin(), Pick(static_cast<int>(jobs_.size())));
    switch (Pick(8)) {
      case 0:
        epoch_ = !epoch_ || Pick(3) > 0;
        break;
      case 1:
        order_.Fail(id);
        job.failed = true;
        break;
      case 2:
        End(id);
        break;
      case 3:
      case 4:
        if (!job.ready && !job.failed) ready_.push_back(id);
        job.ready = true;
        order_.Ready(id);
        break;
      default:
        if (!job.running.empty()) {
          const int rank = *job.running.begin();
          job.running.erase(rank);
          EXPECT_EQ(order_.RankIdle(id, rank), job.running.empty());
        }
    }
    Start();
  }

  void End(JobId id) {
    order_.End(id);
    jobs_.erase(id);
    ready_.erase(std::remove(ready_.begin(), ready_.end(), id), ready_.end());
  }

  std::set<std::string> Busy() const {
    std::set<std::string> busy;
    for (const auto& [id, job] : jobs_) {
      for (const int rank : job.running) EXPECT_TRUE(busy.insert(job.workers[rank]).second);
    }
    return busy;
  }

  void Start() {
    const std::set<std::string> busy = Busy();
    std::set<JobId> started;
    for (const auto& one : order_.Start(epoch_ ? InOneEpoch : InNone)) {
      Job& job = jobs_.at(one.job);
      ASSERT_TRUE(job.ready && !job.failed && !job.started);
      job.started = true;
      for (size_t rank = 0; rank < job.workers.size(); ++rank) {
        job.running.insert(static_cast<int>(rank));
      }
      started.insert(one.job);
    }
    Busy();
    // What the rule says, read anew: in their order, each that can take its workers does.
    std::set<std::string> taken = busy;
    std::vector<JobId> waiting;
    for (const JobId id : ready_) {
      const Job& job = jobs_.at(id);
      if (job.failed) continue;
      const bool bound = epoch_ || job.workers.size() == 1;
      const bool free = std::none_of(job.workers.begin(), job.workers.end(),
                                     [&](const auto& worker) { return taken.count(worker) > 0; });
      ASSERT_EQ(started.count(id) == 1, bound && free) << "job " << id;
      if (bound) taken.insert(job.workers.begin(), job.workers.end());
      if (started.count(id) == 0) waiting.push_back(id);
    }
    ready_ = waiting;
  }

  std::mt19937 random_;
  RunOrder order_;
  bool epoch_ = true;
  JobId last_ = 0;
  std::map<JobId, Job> jobs_;
  std::vector<JobId> ready_;
};

TEST(RunOrder, KeepsItsPromisesWhateverHappens) {
  for (int seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Soak(seed).Run(500);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace ringserve
