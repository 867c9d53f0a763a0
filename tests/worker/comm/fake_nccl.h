// NCCL and its devices as NcclLink shows them, in host memory: streams that do one thing after the
// other, groups whose transfers meet untagged and in order, connections that want both ends, and
// nobody who tells that a peer is gone. One fabric serves the members of any number of
// communicators, each on a thread of its own. How slow anything is comes from a seed.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "worker/comm/nccl_link.h"

namespace ringserve::test {

class FakeNccl {
 public:
  explicit FakeNccl(uint64_t seed) : random_(seed) {}

  // Of one member; outlived by the fabric.
  std::unique_ptr<NcclLibrary> MakeLibrary();

  // The devices stand still: groups and copies that are launched wait. Or: so does Abort.
  void Hold(bool held);
  void HoldAborts(bool held);

  // What computes is busy: its marks are not reached.
  void HoldComputing(bool held);

  // The next question of this member's links whether they have settled is answered so.
  void FailNext(int member, absl::Status status);

  // What NCCL would not have noticed: transfers of different sizes that met each other.
  std::vector<std::string> crossed() const;

  // Groups that were launched, by member: "2>1:100 0<2:64" is 100 bytes from 2 to 1, and 64 from 2.
  std::vector<std::string> launched(int member) const;

  // Members that are building at present, over all communicators; and the most at a time of one
  // library.
  int most_building_at_once() const;

  // Tickets of events that computing was told to follow, and memory and events not given back.
  int computing_follows() const;
  int left_behind() const;

 private:
  class Link;
  class Library;
  using Event = NcclLink::Event;

  struct Group {
    std::map<int, std::span<const std::byte>> sends;  // by peer: not done
    std::map<int, std::span<std::byte>> recvs;
  };
  struct Task {  // of a stream; one of these
    std::shared_ptr<Group> group;
    std::function<void()> work;  // copies, or gives memory back
    Event reach = 0;
    Event follow = 0;
  };
  struct Communicator {
    std::map<int, Link*> links;                        // by member
    std::set<std::pair<int, int>> senders, receivers;  // who has asked for a connection (from, to)
  };

  void RunLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool StepLocked(Communicator& communicator, Link& link) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void MeetLocked(Communicator& communicator, Link& link) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IdlesLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return random_() % 4 == 0; }

  mutable absl::Mutex mu_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Communicator> communicators_ ABSL_GUARDED_BY(mu_);
  std::map<Event, bool> events_ ABSL_GUARDED_BY(mu_);  // reached?
  std::set<Event> computing_ ABSL_GUARDED_BY(mu_);     // marks of what computes
  Event last_event_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t last_id_ ABSL_GUARDED_BY(mu_) = 0;
  bool held_ ABSL_GUARDED_BY(mu_) = false;
  bool aborts_held_ ABSL_GUARDED_BY(mu_) = false;
  bool computing_held_ ABSL_GUARDED_BY(mu_) = false;
  int computing_follows_ ABSL_GUARDED_BY(mu_) = 0;
  int memory_ ABSL_GUARDED_BY(mu_) = 0;
  int most_building_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<int, absl::Status> failures_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> crossed_ ABSL_GUARDED_BY(mu_);
  std::map<int, std::vector<std::string>> launched_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve::test
