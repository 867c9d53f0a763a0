#include "tests/worker/comm/ranks.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <new>
#include <thread>

namespace ringserve::test {

struct Meeting {
  static constexpr int kMaxRanks = 8;
  static constexpr int kSigns = 16;
  std::atomic<int> arrived[kMaxRanks];  // how many meetings each rank has come to
  std::atomic<int> signs[kSigns];
  pid_t pids[kMaxRanks];
  char addresses[kMaxRanks][128];
  char errors[kMaxRanks][2048];
};

Rank::Rank(int index, int ranks, Meeting& meeting, const Implementation& implementation)
    : index_(index), ranks_(ranks), meeting_(meeting), transport_(implementation.make()) {
  std::snprintf(meeting_.addresses[index], sizeof(meeting_.addresses[index]), "%s",
                transport_->address().c_str());
  meeting_.pids[index] = getpid();
  Meet();
}

Rank::~Rank() = default;

std::shared_ptr<Communicator> Rank::Build(const std::string& epoch) {
  std::vector<std::string> addresses;
  for (int rank = 0; rank < ranks_; ++rank) addresses.push_back(meeting_.addresses[rank]);
  return transport_->Build(epoch, addresses, index_);
}

void Rank::Meet() {
  meeting_.arrived[index_] = ++meetings_;
  const bool all = WaitUntil([&] {
    for (int rank = 0; rank < ranks_; ++rank) {
      if (meeting_.arrived[rank] < meetings_) return false;
    }
    return true;
  });
  if (!all) throw std::runtime_error(absl::StrCat("meeting ", meetings_, ": a rank did not come"));
}

void Rank::Give(int sign) { meeting_.signs[sign] = 1; }

void Rank::Await(int sign) {
  if (!WaitUntil([&] { return meeting_.signs[sign] != 0; })) {
    throw std::runtime_error(absl::StrCat("sign ", sign, " was never given"));
  }
}

pid_t Rank::pid_of(int rank) const { return meeting_.pids[rank]; }

namespace {

void RunRank(int index, int ranks, Meeting& meeting, const Implementation& implementation,
             const std::function<void(Rank&)>& body) {
  try {
    Rank rank(index, ranks, meeting, implementation);
    body(rank);
  } catch (const std::exception& error) {
    std::snprintf(meeting.errors[index], sizeof(meeting.errors[index]), "%s", error.what());
  }
}

void RunThreads(int ranks, Meeting& meeting, const Implementation& implementation,
                const std::function<void(Rank&)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] { RunRank(rank, ranks, meeting, implementation, body); });
  }
  for (std::thread& thread : threads) thread.join();
}

void RunProcesses(int ranks, Meeting& meeting, const Implementation& implementation,
                  const std::function<void(Rank&)>& body, const std::set<int>& doomed) {
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      RunRank(rank, ranks, meeting, implementation, body);
      std::fflush(nullptr);
      _exit(0);
    }
    children.push_back(child);
  }
  for (int rank = 0; rank < ranks; ++rank) {
    if (doomed.count(rank) > 0) continue;
    int status = -1;
    const bool over = WaitUntil(
        [&] { return waitpid(children[rank], &status, WNOHANG) == children[rank]; }, 3 * kPatience);
    if (!over) {
      kill(children[rank], SIGKILL);
      waitpid(children[rank], nullptr, 0);
      ADD_FAILURE() << "rank " << rank << " did not end";
    } else {
      EXPECT_EQ(status, 0) << "rank " << rank << " ended badly";
    }
  }
  for (const int rank : doomed) {
    kill(children[rank], SIGKILL);
    waitpid(children[rank], nullptr, 0);
  }
}

}  // namespace

void RunRanks(RunAs as, int ranks, const Implementation& implementation,
              const std::function<void(Rank&)>& body, const std::set<int>& doomed) {
  void* memory =
      mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* meeting = new (memory) Meeting();
  implementation.prepare();
  if (as == RunAs::kThreads) {
    ASSERT_TRUE(doomed.empty());
    RunThreads(ranks, *meeting, implementation, body);
  } else {
    RunProcesses(ranks, *meeting, implementation, body, doomed);
  }
  for (int rank = 0; rank < ranks; ++rank) {
    if (doomed.count(rank) > 0) continue;
    EXPECT_STREQ(meeting->errors[rank], "") << "rank " << rank;
  }
  munmap(memory, sizeof(Meeting));
}

char ProcessState(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');
  return name_end == std::string::npos ? '\0' : line[name_end + 2];
}

std::vector<std::byte> Pattern(size_t size, uint64_t seed) {
  std::vector<std::byte> bytes(size);
  uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  for (std::byte& byte : bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<std::byte>(state >> 56);
  }
  return bytes;
}

}  // namespace ringserve::test
