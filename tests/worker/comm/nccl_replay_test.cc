// Plans carried out by NcclCommunicators on a fake NCCL, in bytes alone: which sends and receives
// each rank posts in which group. NCCL pairs them by their order, so any that come in another one
// would show: as a wait without end, as bytes of another shard, or as sizes that do not fit. Jobs
// on any members follow each other, some are cancelled on their way, and some epochs end under
// them.
#include <cstring>
#include <map>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/plan/plan.h"
#include "tests/support/random.h"
#include "tests/support/random_case.h"
#include "tests/support/wait.h"
#include "tests/worker/comm/nccl_group.h"
#include "tests/worker/comm/ranks.h"
#include "worker/assignment.h"

namespace ringserve::test {
namespace {

using ::testing::IsEmpty;
using Bytes = std::vector<std::byte>;

constexpr int kJobs = 6;
constexpr std::byte kNotComputed{0xFF};

// What there is of a job.
struct ReplayedJob {
  uint64_t id = 0;
  std::vector<RankPlan> ranks;
  std::vector<bool> cancelled;  // by rank: it computes nothing
};

size_t SizeOf(const ReplayedJob& job, uint64_t owner) {
  return 1 + (job.id * 37 + owner * 101) % 5'000;
}

Bytes ShardOf(const ReplayedJob& job, int owner) {
  return Pattern(SizeOf(job, owner), job.id * 64 + owner);
}

Bytes PartialOf(const ReplayedJob& job, int from, int to) {
  if (job.cancelled[from]) return Bytes(SizeOf(job, to) + 1, kNotComputed);
  return Pattern(SizeOf(job, to) + 1, (job.id * 64 + from) * 64 + to + 1'000'000);
}

ReplayedJob MakeReplayedJob(uint64_t id, int members, Random& random) {
  for (uint64_t seed = id * 1'000;; ++seed) {
    Case c = RandomCase(seed, members, 120);
    const absl::StatusOr<Plan> plan =
        MakePlan(c.spec, c.options, {.workers = members}, DefaultMeasurements());
    if (!plan.ok()) continue;  // it asks for more workers
    ReplayedJob job{.id = id};
    std::vector<int> all(members);
    for (int member = 0; member < members; ++member) all[member] = member;
    v1::Start start;
    for (int rank = 0; rank < plan->ranks(); ++rank) {
      const int at = static_cast<int>(random.Between(0, static_cast<int64_t>(all.size()) - 1));
      start.add_members(all[at]);
      all.erase(all.begin() + at);
    }
    for (int rank = 0; rank < plan->ranks(); ++rank) {
      v1::Assignment assignment = AssignmentFor(*plan, rank);
      assignment.set_job(id);
      assignment.set_request_id("replay");
      absl::StatusOr<RankAssignment> parsed = ParseAssignment(assignment);
      EXPECT_TRUE(parsed.ok()) << parsed.status();
      EXPECT_TRUE(BindMembers(start, start.members(rank), members, parsed->plan).ok());
      job.ranks.push_back(parsed->plan);
      job.cancelled.push_back(random.Chance(0.2));
    }
    return job;
  }
}

// The ring loop's exchanges, as ring.cc makes them.
absl::Status RunExchanges(const ReplayedJob& job, int rank, NcclCommunicator& communicator,
                          Random& random) {
  const RankPlan& plan = job.ranks[rank];
  std::map<int, std::shared_ptr<Bytes>> held = {
      {rank, std::make_shared<Bytes>(ShardOf(job, rank))}};
  std::map<int, std::shared_ptr<Bytes>> partials;  // by where they come from
  for (uint32_t index = 0; index < plan.steps.size(); ++index) {
    const Step& step = plan.steps[index];
    std::vector<SendOp> sends;
    std::vector<RecvOp> recvs;
    const auto send = [&](int to, const std::shared_ptr<Bytes>& bytes) {
      sends.push_back({plan.members[to], {*bytes}, bytes});
    };
    const auto recv = [&](int from, size_t size) {
      auto bytes = std::make_shared<Bytes>(size);
      recvs.push_back({plan.members[from], {*bytes}});
      return bytes;
    };
    for (const Transfer& transfer : step.sends) send(transfer.peer, held.at(transfer.owner));
    for (const Transfer& transfer : step.recvs) {
      held[transfer.owner] = recv(transfer.peer, SizeOf(job, transfer.owner));
    }
    for (const int to : step.partial_sends) {
      send(to, std::make_shared<Bytes>(PartialOf(job, rank, to)));
    }
    for (const int from : step.partial_recvs) {
      partials[from] = recv(from, SizeOf(job, rank) + 1);
    }
    const auto ticket = communicator.Post({.job = job.id, .step = index}, sends, recvs);
    if (!ticket.ok()) return ticket.status();
    if (random.Chance(0.3)) {
      std::this_thread::sleep_for(std::chrono::microseconds(random.Between(0, 500)));
    }
    absl::Status then = communicator.Then(*ticket, Communicator::Clock::now() + kPatience);
    if (!then.ok()) return then;
  }
  absl::Status finished = communicator.Finish(Communicator::Clock::now() + kPatience);
  if (!finished.ok()) return finished;
  for (const auto& [owner, bytes] : held) {
    if (*bytes != ShardOf(job, owner)) return absl::DataLossError("a shard is another one");
  }
  for (const auto& [from, bytes] : partials) {
    if (*bytes != PartialOf(job, from, rank))
      return absl::DataLossError("a partial is another one");
  }
  return absl::OkStatus();
}

// One epoch: every member goes through the jobs that it is part of, in the coordinator's order.
std::vector<absl::Status> RunEpoch(NcclGroup& group, const NcclGroup::Members& members,
                                   const std::vector<ReplayedJob>& jobs, uint64_t seed) {
  std::vector<absl::Status> ends(group.size());
  std::vector<std::thread> threads;
  threads.reserve(group.size());
  for (int member = 0; member < group.size(); ++member) {
    threads.emplace_back([&, member] {
      Random random(seed * 100 + member);
      for (const ReplayedJob& job : jobs) {
        for (size_t rank = 0; rank < job.ranks.size() && ends[member].ok(); ++rank) {
          if (job.ranks[rank].members[rank] != member) continue;
          ends[member] = RunExchanges(job, static_cast<int>(rank), *members[member], random);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return ends;
}

std::vector<ReplayedJob> MakeReplayedJobs(uint64_t seed, int size, Random& random) {
  std::vector<ReplayedJob> jobs;
  for (uint64_t id = 1; id <= kJobs; ++id) {
    jobs.push_back(MakeReplayedJob(seed * kJobs + id, size, random));
  }
  return jobs;
}

class NcclReplay : public ::testing::TestWithParam<int> {};

TEST_P(NcclReplay, NothingCrossesAndNobodyWaitsForEver) {
  const int size = GetParam();
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Random random(seed * 10 + size);
    NcclGroup group(size, seed);
    const std::vector<ReplayedJob> jobs = MakeReplayedJobs(seed, size, random);
    const NcclOptions options = {.steps_ahead = static_cast<int>(seed % 3)};
    const auto members = group.BuildAll("first", options);
    for (const absl::Status& end : RunEpoch(group, members, jobs, seed)) {
      ASSERT_TRUE(end.ok()) << end << " seed " << seed;
    }
    uint64_t groups = 0, steps = 0;
    for (int member = 0; member < size; ++member) groups += group.fabric().launched(member).size();
    for (const ReplayedJob& job : jobs) {
      for (const RankPlan& plan : job.ranks) {
        for (const Step& step : plan.steps) {
          steps += !step.sends.empty() || !step.recvs.empty() || !step.partial_sends.empty() ||
                   !step.partial_recvs.empty();
        }
      }
    }
    EXPECT_EQ(groups, steps);
    ASSERT_THAT(group.fabric().crossed(), IsEmpty()) << "seed " << seed;
    EXPECT_EQ(group.fabric().left_behind(), 0);
  }
}

// The coordinator fences the epoch at any moment; the next one carries on.
TEST_P(NcclReplay, AFenceEndsAllOfAnEpochAndTheNextStartsAfresh) {
  const int size = GetParam();
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Random random(seed * 10 + size);
    NcclGroup group(size, seed);
    const std::vector<ReplayedJob> jobs = MakeReplayedJobs(seed, size, random);
    const NcclOptions options = {.steps_ahead = static_cast<int>(seed % 3)};
    const auto fenced = group.BuildAll("fenced", options);
    std::thread coordinator([&, wait = random.Between(0, 20'000)] {
      std::this_thread::sleep_for(std::chrono::microseconds(wait));
      for (const auto& member : fenced) member->Abort(absl::UnavailableError("fenced"));
    });
    for (const absl::Status& end : RunEpoch(group, fenced, jobs, seed)) {
      EXPECT_TRUE(end.ok() || end == absl::UnavailableError("fenced")) << end << " seed " << seed;
    }
    coordinator.join();
    const auto members = group.BuildAll("next", options);
    for (const absl::Status& end : RunEpoch(group, members, jobs, seed)) {
      ASSERT_TRUE(end.ok()) << end << " seed " << seed;
    }
    ASSERT_THAT(group.fabric().crossed(), IsEmpty()) << "seed " << seed;
    EXPECT_THAT(group.stuck(), IsEmpty());
  }
}

INSTANTIATE_TEST_SUITE_P(Members, NcclReplay, ::testing::Range(1, 9));

}  // namespace
}  // namespace ringserve::test
