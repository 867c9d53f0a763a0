#include "server/admission.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
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
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using JobId = Admission::JobId;

v1::AttentionSpec Spec(int64_t length) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(1);
  spec.set_kv_heads(1);
  spec.set_q_len(length);
  spec.set_kv_len(length);
  spec.set_head_dim(8);
  spec.set_dtype(v1::DTYPE_F32);
  return spec;
}

v1::AttentionOptions OnWorkers(int workers) {
  v1::AttentionOptions options;
  options.set_workers(workers);
  return options;
}

// What one rank of Spec(length) takes where `workers` share it evenly.
uint64_t PeakOf(int64_t length, int workers) {
  const absl::StatusOr<Plan> plan =
      MakePlan(Spec(length), OnWorkers(workers), {.workers = workers}, DefaultMeasurements());
  return *std::max_element(plan->peak_bytes.begin(), plan->peak_bytes.end());
}

std::vector<Admission::Capacity> Workers(int count, uint64_t memory_bytes) {
  std::vector<Admission::Capacity> workers;
  for (int i = 0; i < count; ++i) workers.push_back({absl::StrCat("w", i), memory_bytes});
  return workers;
}

absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(const Admission::PlanRequest& request) {
  absl::StatusOr<Plan> plan =
      MakePlan(*request.spec, request.options, request.group, DefaultMeasurements());
  if (!plan.ok()) return plan.status();
  return std::make_shared<const Plan>(*std::move(plan));
}

// Admission and a planner that answers at once.
class Desk {
 public:
  explicit Desk(AdmissionOptions options) : admission_(options) {}

  Admission::Decisions Submit(JobId job, const v1::AttentionSpec& spec,
                              const v1::AttentionOptions& options) {
    return Plan(admission_.Submit(job, std::make_shared<const v1::AttentionSpec>(spec), options));
  }
  Admission::Decisions SetWorkers(std::vector<Admission::Capacity> workers) {
    return Plan(admission_.SetWorkers(std::move(workers)));
  }
  Admission::Decisions End(JobId job) { return Plan(admission_.End(job)); }
  int queued() const { return admission_.queued(); }
  int admitted() const { return admission_.admitted(); }
  const Group& group() const { return admission_.group(); }
  uint64_t Reserved(const std::string& worker) const { return admission_.Reserved(worker); }

 private:
  Admission::Decisions Plan(Admission::Decisions decisions) {
    for (size_t i = 0; i < decisions.to_plan.size(); ++i) {
      const Admission::PlanRequest request = decisions.to_plan[i];
      const Admission::Decisions more =
          admission_.Planned(request.job, request.generation, PlanOf(request));
      const auto append = [](const auto& from, auto& to) {
        to.insert(to.end(), from.begin(), from.end());
      };
      append(more.to_plan, decisions.to_plan);
      append(more.admitted, decisions.admitted);
      append(more.refused, decisions.refused);
    }
    return decisions;
  }

  Admission admission_;
};

std::vector<JobId> Ids(const Admission::Decisions& decisions) {
  std::vector<JobId> ids;
  for (const auto& admitted : decisions.admitted) ids.push_back(admitted.job);
  return ids;
}

// The one refusal, which concerns `job`.
Admission::Refused Refusal(const Admission::Decisions& decisions, JobId job) {
  EXPECT_EQ(decisions.refused.size(), 1u);
  if (decisions.refused.size() != 1) return {};
  EXPECT_EQ(decisions.refused[0].job, job);
  return decisions.refused[0];
}

TEST(Admission, PlansAndReservesOnAllWorkersAtOnce) {
  Desk admission({});
  admission.SetWorkers(Workers(3, 1 << 30));
  const auto decisions = admission.Submit(1, Spec(100), OnWorkers(3));
  ASSERT_THAT(Ids(decisions), ElementsAre(1));
  const Admission::Admitted& admitted = decisions.admitted[0];
  ASSERT_EQ(admitted.plan->ranks(), 3);
  EXPECT_THAT(admitted.workers, ::testing::UnorderedElementsAre("w0", "w1", "w2"));
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(admission.Reserved(admitted.workers[rank]), admitted.plan->peak_bytes[rank]);
  }
  EXPECT_EQ(admission.admitted(), 1);
  admission.End(1);
  admission.End(1);
  for (const char* worker : {"w0", "w1", "w2"}) EXPECT_EQ(admission.Reserved(worker), 0u);
  EXPECT_EQ(admission.admitted(), 0);
}

TEST(Admission, TakesExactlySoManyWorkersAsAskedOrLetsThePlannerChoose) {
  Desk admission({});
  admission.SetWorkers(Workers(4, 1 << 30));
  for (int workers = 1; workers <= 4; ++workers) {
    const auto decisions = admission.Submit(workers, Spec(64), OnWorkers(workers));
    ASSERT_EQ(decisions.admitted.size(), 1u);
    EXPECT_EQ(decisions.admitted[0].workers.size(), static_cast<size_t>(workers));
  }
  const auto chosen = admission.Submit(9, Spec(8), OnWorkers(0));
  ASSERT_EQ(chosen.admitted.size(), 1u);
  EXPECT_EQ(chosen.admitted[0].workers.size(), 1u) << "a short sequence is not worth a ring";
}

TEST(Admission, RefusesAtOnceWhatNeedsMoreWorkersThanThereAre) {
  Desk admission({});
  const auto nobody = Refusal(admission.Submit(1, Spec(8), OnWorkers(0)), 1);
  EXPECT_EQ(nobody.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(nobody.retry);
  admission.SetWorkers(Workers(2, 1 << 30));
  const auto too_few = Refusal(admission.Submit(2, Spec(8), OnWorkers(3)), 2);
  EXPECT_EQ(too_few.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(too_few.status.message()), HasSubstr("only 2 workers"));
  EXPECT_FALSE(too_few.retry);
  EXPECT_EQ(admission.queued(), 0);
}

TEST(Admission, RefusesForGoodWhatNeverFits) {
  Desk admission({});
  admission.SetWorkers({{"large", 1 << 30}, {"small", PeakOf(100, 1)}});
  EXPECT_THAT(Ids(admission.Submit(1, Spec(100), OnWorkers(1))), ElementsAre(1));
  const auto refused = Refusal(admission.Submit(2, Spec(200), OnWorkers(1)), 2);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr(absl::StrCat(PeakOf(100, 1))));
  EXPECT_FALSE(refused.retry);
}

TEST(Admission, QueuesWhatHasToWaitForMemoryFirstComeFirstServed) {
  Desk admission({});
  admission.SetWorkers(Workers(1, PeakOf(100, 1)));
  EXPECT_THAT(Ids(admission.Submit(1, Spec(60), OnWorkers(1))), ElementsAre(1));
  EXPECT_THAT(Ids(admission.Submit(2, Spec(100), OnWorkers(1))), IsEmpty());
  EXPECT_THAT(Ids(admission.Submit(3, Spec(10), OnWorkers(1))), IsEmpty())
      << "it would fit, but may not pass the second by";
  EXPECT_EQ(admission.queued(), 2);
  EXPECT_THAT(Ids(admission.End(1)), ElementsAre(2));
  EXPECT_THAT(Ids(admission.End(2)), ElementsAre(3));
  EXPECT_EQ(admission.queued(), 0);
}

TEST(Admission, AWithdrawnJobMakesWayForThoseBehindIt) {
  Desk admission({});
  admission.SetWorkers(Workers(1, PeakOf(100, 1)));
  admission.Submit(1, Spec(60), OnWorkers(1));
  admission.Submit(2, Spec(100), OnWorkers(1));
  admission.Submit(3, Spec(10), OnWorkers(1));
  EXPECT_THAT(Ids(admission.End(2)), ElementsAre(3));
  EXPECT_EQ(admission.queued(), 0);
  EXPECT_THAT(Ids(admission.End(77)), IsEmpty());
}

TEST(Admission, BoundsTheQueueAndSaysThatAnotherAttemptIsWorthIt) {
  Desk admission({.max_queued_jobs = 2});
  admission.SetWorkers(Workers(1, PeakOf(100, 1)));
  for (JobId job = 1; job <= 3; ++job) {
    EXPECT_THAT(admission.Submit(job, Spec(100), OnWorkers(1)).refused, IsEmpty());
  }
  const auto refused = Refusal(admission.Submit(4, Spec(100), OnWorkers(1)), 4);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("limit 2"));
  EXPECT_TRUE(refused.retry);
  EXPECT_EQ(admission.queued(), 2);
}

TEST(Admission, WithoutAQueueOnlyWhatGetsInAtOnceGetsIn) {
  Desk admission({.max_queued_jobs = 0});
  admission.SetWorkers(Workers(1, PeakOf(100, 1)));
  EXPECT_THAT(Ids(admission.Submit(1, Spec(100), OnWorkers(1))), ElementsAre(1));
  EXPECT_EQ(Refusal(admission.Submit(2, Spec(1), OnWorkers(1)), 2).status.code(),
            absl::StatusCode::kResourceExhausted);
  admission.End(1);
  EXPECT_THAT(Ids(admission.Submit(3, Spec(100), OnWorkers(1))), ElementsAre(3));
}

TEST(Admission, SpreadsSmallJobsOverIdleWorkers) {
  Desk admission({});
  admission.SetWorkers(Workers(3, 1 << 30));
  std::set<std::string> used;
  for (JobId job = 1; job <= 3; ++job) {
    used.insert(admission.Submit(job, Spec(8), OnWorkers(1)).admitted[0].workers[0]);
  }
  EXPECT_EQ(used.size(), 3u);
  admission.End(2);
  EXPECT_THAT(admission.Submit(4, Spec(8), OnWorkers(1)).admitted[0].workers, ElementsAre("w1"));
  admission.End(1);
  admission.End(4);
  const auto pair = admission.Submit(5, Spec(8), OnWorkers(2)).admitted[0].workers;
  EXPECT_THAT(pair, ElementsAre("w0", "w1"));
}

TEST(Admission, PutsALargeRankWhereThereIsRoomForIt) {
  Desk admission({});
  const uint64_t peak = PeakOf(100, 1);
  admission.SetWorkers({{"a", peak}, {"b", peak + PeakOf(50, 1)}});
  EXPECT_THAT(admission.Submit(1, Spec(50), OnWorkers(1)).admitted[0].workers, ElementsAre("a"));
  EXPECT_THAT(admission.Submit(2, Spec(50), OnWorkers(1)).admitted[0].workers, ElementsAre("b"));
  EXPECT_THAT(admission.Submit(3, Spec(100), OnWorkers(1)).admitted[0].workers, ElementsAre("b"))
      << "b alone has so much left";
}

TEST(Admission, BoundsHowManyJobsAWorkerHolds) {
  Desk admission({.max_jobs_per_worker = 2});
  admission.SetWorkers(Workers(1, 1 << 30));
  admission.Submit(1, Spec(8), OnWorkers(1));
  admission.Submit(2, Spec(8), OnWorkers(1));
  EXPECT_THAT(Ids(admission.Submit(3, Spec(8), OnWorkers(1))), IsEmpty());
  EXPECT_THAT(Ids(admission.End(1)), ElementsAre(3));
}

TEST(Admission, ALossRefusesQueuedJobsThatNeedMoreAndPlansTheOthersAnew) {
  Desk admission({});
  const uint64_t memory = PeakOf(100, 1);
  admission.SetWorkers(Workers(2, memory));
  admission.Submit(1, Spec(100), OnWorkers(1));
  admission.Submit(2, Spec(100), OnWorkers(1));
  admission.Submit(3, Spec(20), OnWorkers(2));
  admission.Submit(4, Spec(20), OnWorkers(0));
  ASSERT_EQ(admission.queued(), 2);
  const auto lost = admission.SetWorkers({{"w1", memory}});
  const auto refused = Refusal(lost, 3);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(refused.retry);
  EXPECT_THAT(Ids(lost), IsEmpty());
  EXPECT_THAT(Ids(admission.End(1)), IsEmpty()) << "what it had is on the lost worker";
  EXPECT_THAT(Ids(admission.End(2)), ElementsAre(4));
  EXPECT_EQ(admission.Reserved("w0"), 0u);
}

TEST(Admission, TheLastLossRefusesEverythingThatIsQueued) {
  Desk admission({});
  admission.SetWorkers(Workers(1, PeakOf(100, 1)));
  admission.Submit(1, Spec(100), OnWorkers(0));
  admission.Submit(2, Spec(100), OnWorkers(0));
  const auto refused = Refusal(admission.SetWorkers({}), 2);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(admission.queued(), 0);
  EXPECT_EQ(admission.group().workers, 0);
}

TEST(Admission, AJoinAdmitsWhatWaitedAndASmallerWorkerMayRefuseIt) {
  Desk admission({});
  const uint64_t memory = PeakOf(100, 1);
  admission.SetWorkers(Workers(1, memory));
  admission.Submit(1, Spec(100), OnWorkers(1));
  admission.Submit(2, Spec(100), OnWorkers(1));
  admission.Submit(3, Spec(100), OnWorkers(1));
  EXPECT_THAT(Ids(admission.SetWorkers(Workers(2, memory))), ElementsAre(2));
  const auto shrunk = admission.SetWorkers({{"w0", memory}, {"w1", memory}, {"w2", 1'000}});
  EXPECT_EQ(Refusal(shrunk, 3).status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST(Admission, AsksForAPlanAndTakesNoOther) {
  Admission admission({});
  admission.SetWorkers(Workers(1, 1 << 30));
  const auto spec = std::make_shared<const v1::AttentionSpec>(Spec(8));
  const auto asked = admission.Submit(1, spec, OnWorkers(1));
  ASSERT_EQ(asked.to_plan.size(), 1u);
  EXPECT_EQ(asked.to_plan[0].job, 1u);
  EXPECT_TRUE(asked.to_plan[0].spec == spec);
  EXPECT_EQ(asked.to_plan[0].group.workers, 1);
  // The workers have changed meanwhile: it is asked again.
  EXPECT_THAT(admission.SetWorkers(Workers(2, 1 << 30)).to_plan, IsEmpty());
  const auto again = admission.Planned(1, asked.to_plan[0].generation, PlanOf(asked.to_plan[0]));
  EXPECT_THAT(again.admitted, IsEmpty());
  ASSERT_EQ(again.to_plan.size(), 1u);
  EXPECT_EQ(again.to_plan[0].group.workers, 2);
  EXPECT_THAT(Ids(admission.Planned(1, again.to_plan[0].generation, PlanOf(again.to_plan[0]))),
              ElementsAre(1));
  // It comes twice, or too late.
  EXPECT_THAT(Ids(admission.Planned(1, again.to_plan[0].generation, PlanOf(again.to_plan[0]))),
              IsEmpty());
  const auto late = admission.Submit(2, spec, OnWorkers(1));
  admission.End(2);
  EXPECT_THAT(Ids(admission.Planned(2, late.to_plan[0].generation, PlanOf(late.to_plan[0]))),
              IsEmpty());
  EXPECT_EQ(admission.admitted(), 1);
}

TEST(Admission, ASlowPlanHoldsUpThoseBehindItAndLosesNobody) {
  Admission admission({});
  admission.SetWorkers(Workers(1, 1 << 30));
  const auto spec = std::make_shared<const v1::AttentionSpec>(Spec(8));
  const auto first = admission.Submit(1, spec, OnWorkers(1)).to_plan;
  const auto second = admission.Submit(2, spec, OnWorkers(1)).to_plan;
  EXPECT_THAT(Ids(admission.Planned(2, second[0].generation, PlanOf(second[0]))), IsEmpty());
  const auto admitted = admission.Planned(1, first[0].generation, PlanOf(first[0]));
  EXPECT_THAT(Ids(admitted), ElementsAre(1));
  ASSERT_EQ(admitted.to_plan.size(), 1u) << "plans are kept for the first in the queue alone";
  EXPECT_THAT(Ids(admission.Planned(2, admitted.to_plan[0].generation, PlanOf(second[0]))),
              ElementsAre(2));
}

TEST(Admission, BoundsTheBytesOfQueuedHeaders) {
  v1::AttentionSpec large = Spec(100);
  for (int i = 0; i < 1'000; ++i) large.add_masks()->set_causal(true);
  large.set_batch(1'000);
  // In memory, where a mask is far larger than on the wire.
  Admission admission({.max_queued_bytes = 2 * 1'100 * sizeof(v1::Mask)});
  admission.SetWorkers(Workers(1, 1 << 30));
  const auto spec = std::make_shared<const v1::AttentionSpec>(large);
  EXPECT_THAT(admission.Submit(1, spec, OnWorkers(1)).refused, IsEmpty());
  EXPECT_THAT(admission.Submit(2, spec, OnWorkers(1)).refused, IsEmpty());
  const auto refused = Refusal(admission.Submit(3, spec, OnWorkers(1)), 3);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(refused.retry);
  admission.End(1);
  EXPECT_THAT(admission.Submit(4, spec, OnWorkers(1)).refused, IsEmpty());
  EXPECT_EQ(admission.queued(), 2);
}

// Random jobs and workers against what was promised.
class Soak {
 public:
  Soak(int seed, int queue)
      : random_(seed),
        queue_limit_(queue),
        admission_({.max_queued_jobs = queue, .max_jobs_per_worker = 5}) {}

  void Run(int events) {
    for (int i = 0; i < events && !::testing::Test::HasFailure(); ++i) {
      Step();
      Check();
    }
    AnswerAll();
    Check();
    if (admitted_.empty() && !workers_.empty()) {
      EXPECT_TRUE(queued_.empty()) << "waits for nothing";
    }
    if (workers_.empty()) {
      EXPECT_TRUE(queued_.empty());
    }
    while (!unended_.empty()) End(*unended_.begin());
    Check();
    EXPECT_EQ(admission_.queued(), 0);
    EXPECT_EQ(admission_.admitted(), 0);
    for (const std::string& worker : all_workers_) EXPECT_EQ(admission_.Reserved(worker), 0u);
  }

 private:
  int Pick(int n) { return std::uniform_int_distribution<int>(0, n - 1)(random_); }

  void Step() {
    const int dice = Pick(30);
    if (dice >= 20) {
      Answer();
    } else if (dice < 9) {
      const JobId job = ++last_job_;
      unended_.insert(job);
      queued_.push_back(job);
      Take(admission_.Submit(job, std::make_shared<const v1::AttentionSpec>(Spec(1 + Pick(100))),
                             OnWorkers(Pick(4))));
    } else if (dice < 18) {
      if (!unended_.empty())
        End(*std::next(unended_.begin(), Pick(static_cast<int>(unended_.size()))));
    } else {
      ChangeWorkers();
    }
  }

  void ChangeWorkers() {
    if (workers_.size() < 4 && Pick(3) > 0) {
      workers_.push_back({absl::StrCat("w", ++last_worker_), 20'000 + 1'000ull * Pick(60)});
      all_workers_.push_back(workers_.back().worker_id);
    } else if (!workers_.empty()) {
      workers_.erase(workers_.begin() + Pick(static_cast<int>(workers_.size())));
    }
    Take(admission_.SetWorkers(workers_));
  }

  void End(JobId job) {
    unended_.erase(job);
    admitted_.erase(job);
    queued_.erase(std::remove(queued_.begin(), queued_.end(), job), queued_.end());
    Take(admission_.End(job));
  }

  void Answer() {
    if (to_plan_.empty()) return;
    const Admission::PlanRequest request = to_plan_.front();
    to_plan_.pop_front();
    Take(admission_.Planned(request.job, request.generation, PlanOf(request)));
  }

  void AnswerAll() {
    while (!to_plan_.empty() && !::testing::Test::HasFailure()) Answer();
  }

  void Take(const Admission::Decisions& decisions) {
    to_plan_.insert(to_plan_.end(), decisions.to_plan.begin(), decisions.to_plan.end());
    for (const auto& refused : decisions.refused) {
      const auto place = std::find(queued_.begin(), queued_.end(), refused.job);
      ASSERT_NE(place, queued_.end());
      queued_.erase(place);
      ASSERT_FALSE(refused.status.ok());
    }
    for (const auto& admitted : decisions.admitted) {
      ASSERT_FALSE(queued_.empty());
      ASSERT_EQ(queued_.front(), admitted.job) << "out of order";
      queued_.pop_front();
      admitted_[admitted.job] = admitted;
      ASSERT_EQ(static_cast<int>(admitted.workers.size()), admitted.plan->ranks());
      for (const std::string& worker : admitted.workers) {
        ASSERT_TRUE(std::any_of(workers_.begin(), workers_.end(), [&](const auto& present) {
          return present.worker_id == worker;
        })) << "placed on a worker that is not there";
      }
    }
  }

  void Check() {
    ASSERT_EQ(admission_.queued(), static_cast<int>(queued_.size()));
    ASSERT_EQ(admission_.admitted(), static_cast<int>(admitted_.size()));
    ASSERT_LE(admission_.queued(), std::max(queue_limit_, 1));
    if (!queued_.empty() && to_plan_.empty()) {
      ASSERT_FALSE(admitted_.empty()) << "waits for nothing";
    }
    std::map<std::string, uint64_t> bytes;
    std::map<std::string, int> jobs;
    for (const auto& [id, job] : admitted_) {
      std::set<std::string> distinct(job.workers.begin(), job.workers.end());
      ASSERT_EQ(distinct.size(), job.workers.size()) << "two ranks on one worker";
      for (int rank = 0; rank < job.plan->ranks(); ++rank) {
        bytes[job.workers[rank]] += job.plan->peak_bytes[rank];
        ++jobs[job.workers[rank]];
      }
    }
    for (const std::string& worker : all_workers_) {
      ASSERT_EQ(admission_.Reserved(worker), bytes[worker]);
    }
    for (const Admission::Capacity& worker : workers_) {
      ASSERT_LE(bytes[worker.worker_id], worker.memory_bytes);
      ASSERT_LE(jobs[worker.worker_id], 5);
    }
  }

  std::mt19937 random_;
  const int queue_limit_;
  Admission admission_;
  std::vector<Admission::Capacity> workers_;
  std::vector<std::string> all_workers_;
  int last_worker_ = 0;
  JobId last_job_ = 0;
  std::deque<Admission::PlanRequest> to_plan_;
  std::set<JobId> unended_;
  std::deque<JobId> queued_;
  std::map<JobId, Admission::Admitted> admitted_;
};

TEST(Admission, KeepsItsPromisesWhateverHappens) {
  for (int seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Soak(seed, seed % 5).Run(300);
    if (HasFailure()) return;
  }
}

TEST(Admission, PlansCountOnASuspectButNothingIsPlacedOnIt) {
  Desk desk({});
  desk.SetWorkers(Workers(2, 1 << 20));
  std::vector<Admission::Capacity> workers = Workers(2, 1 << 20);
  workers[0].suspect = true;
  EXPECT_THAT(desk.SetWorkers(workers).refused, IsEmpty());
  EXPECT_EQ(desk.group().workers, 2);
  for (const JobId job : {1, 2}) {
    const Admission::Decisions decisions = desk.Submit(job, Spec(64), OnWorkers(1));
    ASSERT_THAT(Ids(decisions), ElementsAre(job));
    EXPECT_THAT(decisions.admitted[0].workers, ElementsAre("w1"));
  }
  EXPECT_THAT(Ids(desk.Submit(3, Spec(64), OnWorkers(2))), IsEmpty());
  EXPECT_EQ(desk.queued(), 1);
  EXPECT_THAT(Ids(desk.SetWorkers(Workers(2, 1 << 20))), ElementsAre(3));
}

TEST(Admission, AJobThatWaitsForASuspectIsPlannedAnewWhenThatIsLost) {
  Desk desk({});
  std::vector<Admission::Capacity> workers = Workers(2, PeakOf(4'096, 2) * 5 / 4);
  workers[0].suspect = true;
  desk.SetWorkers(workers);
  desk.Submit(1, Spec(4'096), OnWorkers(2));
  desk.Submit(2, Spec(64), OnWorkers(0));
  EXPECT_EQ(desk.queued(), 2);
  workers.erase(workers.begin());
  const Admission::Decisions decisions = desk.SetWorkers(workers);
  EXPECT_TRUE(Refusal(decisions, 1).retry);
  ASSERT_THAT(Ids(decisions), ElementsAre(2));
  EXPECT_THAT(decisions.admitted[0].workers, ElementsAre("w1"));
}

}  // namespace
}  // namespace ringserve
