// A group of ranks under test, as threads of this process or as processes forked from it, each with
// a transport of its own. The bodies say what a rank does; a check that fails throws.
//
// Processes are forked before this process has touched a transport, and a transport does not
// survive a fork: a test program runs its ranks in one way only.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <ostream>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/support/wait.h"
#include "worker/comm/communicator.h"

namespace ringserve::test {

// Ends a rank's body: the test fails.
#define REQUIRE(condition)                                                               \
  do {                                                                                   \
    if (!(condition))                                                                    \
      throw std::runtime_error(absl::StrCat(__FILE__, ":", __LINE__, ": ", #condition)); \
  } while (false)
#define REQUIRE_OK(expression)                                                                  \
  do {                                                                                          \
    const absl::Status required = (expression);                                                 \
    if (!required.ok())                                                                         \
      throw std::runtime_error(                                                                 \
          absl::StrCat(__FILE__, ":", __LINE__, ": ", #expression, ": ", required.ToString())); \
  } while (false)

#define REQUIRE_CODE(expression, expected)                                                      \
  do {                                                                                          \
    const absl::Status required = (expression);                                                 \
    if (required.code() != (expected))                                                          \
      throw std::runtime_error(                                                                 \
          absl::StrCat(__FILE__, ":", __LINE__, ": ", #expression, ": ", required.ToString())); \
  } while (false)

// One rank's end of the implementation under test: listens, and builds epochs' communicators.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string address() const = 0;
  virtual std::shared_ptr<Communicator> Build(const std::string& epoch,
                                              const std::vector<std::string>& addresses,
                                              int index) = 0;
};

struct Implementation {
  std::string name;
  std::function<std::unique_ptr<Transport>()> make;
  std::string missing = {};               // what this machine lacks for it; empty: nothing
  std::function<void()> prepare = [] {};  // before the ranks begin, where all of them come from
  bool carries_tags = true;
  bool sees_peers = true;  // that they do not fit, or are gone

  friend void PrintTo(const Implementation& implementation, std::ostream* out) {
    *out << implementation.name;
  }
};

// What the ranks of a group share; lies in memory that forked processes share, too.
struct Meeting;

class Rank {
 public:
  Rank(int index, int ranks, Meeting& meeting, const Implementation& implementation);
  ~Rank();

  int index() const { return index_; }
  int ranks() const { return ranks_; }
  int next() const { return (index_ + 1) % ranks_; }
  int previous() const { return (index_ + ranks_ - 1) % ranks_; }

  // The communicator of an epoch of all ranks, whether the others have theirs or not.
  std::shared_ptr<Communicator> Build(const std::string& epoch = "e1");

  // Waits for all ranks; throws when one does not come.
  void Meet();

  // A sign that any rank gives, and any may wait for.
  void Give(int sign);
  void Await(int sign);

  pid_t pid_of(int rank) const;

 private:
  const int index_;
  const int ranks_;
  Meeting& meeting_;
  std::unique_ptr<Transport> transport_;
  int meetings_ = 0;
};

enum class RunAs { kThreads, kProcesses };

// Runs `body` in every rank and reports what failed as failures of the present test. Ranks in
// `doomed` may end in any way (processes only) and are killed when the others are through.
void RunRanks(RunAs as, int ranks, const Implementation& implementation,
              const std::function<void(Rank&)>& body, const std::set<int>& doomed = {});

// As /proc says it: R, S, T (stopped), Z (dead, not yet waited for) ...; 0: no such process.
char ProcessState(pid_t pid);

// Bytes that tell where they come from. `seed` says which transfer.
std::vector<std::byte> Pattern(size_t size, uint64_t seed);

}  // namespace ringserve::test
