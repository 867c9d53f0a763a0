// Who is a member, and in which epochs: a pure state machine. Events go in, actions come out; it
// knows no transport, no clock and no jobs, and trusts nothing that a worker says.
//
//   member   joined -> [leaving] -> gone
//   epoch    building -> ready -> [draining] -> over
//
// The newest ready epoch is the one for new work; the ready ones before it drain. An epoch is over,
// and fenced, when a member is lost, a communicator breaks, a newer one takes its place before it
// was ready, or it has drained.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "ringserve/v1/cluster.pb.h"
#include "ringserve/v1/shard.pb.h"

namespace ringserve {

struct MembershipOptions {
  std::string incarnation;  // random: an epoch's id never comes twice
  std::chrono::milliseconds heartbeat_interval{200};
  std::chrono::milliseconds lost_after{1'000};
  std::chrono::milliseconds build_deadline{30'000};  // a member without the epoch by then is lost
};

class Membership {
 public:
  using Id = uint64_t;  // of a Join call, chosen by the caller, never twice
  using Time = std::chrono::steady_clock::time_point;

  struct Member {
    Id id = 0;
    std::string worker_id;  // unique within the incarnation
    v1::Hello hello;
    v1::Heartbeat heartbeat;               // the last one
    std::chrono::milliseconds silence{0};  // counted by Tick
    bool leaving = false;                  // no new work
    bool built = false;                    // has built an epoch once
    std::set<uint64_t> recalled;           // jobs of which something may still be there
    std::set<uint64_t> suspected_for;      // of these, those that it owes an answer: it may be gone
  };

  // What is to be done, in this order.
  struct Send {
    Id member = 0;
    v1::CoordinatorMessage message;
  };
  struct End {  // the call is over for this side
    Id member = 0;
    absl::Status status;
  };
  struct WorkerGone {  // unfinished jobs that involve it fail
    std::string worker_id;
    std::string reason;
    bool lost = true;  // else it left in good order
  };
  struct EpochOver {  // jobs that run in it fail
    std::string epoch;
    std::string reason;
  };
  struct Released {  // after Recall: the worker holds nothing of this job, or is no member any more
    std::string worker_id;
    uint64_t job = 0;
  };
  struct Note {  // for the log: what was decided, and why
    bool warning = false;
    std::string text;
  };
  using Action = std::variant<Send, End, WorkerGone, EpochOver, Released, Note>;
  using Actions = std::vector<Action>;

  explicit Membership(MembershipOptions options) : options_(std::move(options)) {}

  // Ends the call with FAILED_PRECONDITION (protocol version; another kind of device than the
  // members') or INVALID_ARGUMENT (a field of `hello`), or welcomes the worker. An older membership
  // of the same address is over.
  Actions Join(Id member, const v1::Hello& hello);

  // Whatever comes from nobody, or concerns an epoch that is over, is ignored.
  Actions Receive(Id member, const v1::WorkerMessage& message);

  // The worker, or its connection, has ended the call.
  Actions CallEnded(Id member);

  // Once per heartbeat interval. Silence is counted in ticks, one interval each at most, so that
  // this process's own lateness makes nobody silent; after a pause all counts begin anew.
  Actions Tick(Time now);

  // The epoch makes no progress.
  Actions BreakEpoch(const std::string& epoch, const std::string& reason);

  // Asks the worker to end what it has of this job, and to say so. Once for each.
  Actions Recall(const std::string& worker_id, uint64_t job, bool suspect);

  // No job needs this epoch of draining() any more.
  Actions Drained(const std::string& epoch);

  // No job of this worker of parting() is unfinished.
  Actions Idle(const std::string& worker_id);

  // Everybody goes.
  Actions EndAll(const absl::Status& status);

  // How much time the last tick counted; 0 after a pause.
  std::chrono::milliseconds counted() const { return counted_; }

  // In the order in which they joined.
  const std::vector<Member>& members() const { return members_; }

  // The newest epoch; empty while it is being built, and without members.
  std::string current_epoch() const;

  std::vector<std::string> draining() const;

  // Those that are leaving and sit in no epoch any more.
  std::vector<std::string> parting() const;

  // Places in the newest ready epoch of which all these workers are members; none: not yet, or
  // never.
  std::optional<v1::Start> Bind(const std::vector<std::string>& workers) const;

  // False if Bind will never find an epoch for them.
  bool MayBind(const std::vector<std::string>& workers) const;

 private:
  struct Epoch {
    std::string id;
    std::vector<Id> members;
    std::set<Id> awaited;              // have not said ready
    bool met = false;                  // its rendezvous was passed on
    std::chrono::milliseconds age{0};  // counted by Tick
    bool ready() const { return awaited.empty(); }
    bool Has(Id member) const;
  };

  absl::Status CheckKind(const v1::Hello& hello) const;
  Member* Find(Id id);
  const Member* Find(const std::string& worker_id) const;
  std::vector<Id> Wanted() const;
  bool Seated(Id id) const;
  const Epoch* NewestReady() const;
  bool Covers(const Epoch& epoch, const std::vector<std::string>& workers) const;
  void Lose(Id id, const absl::Status& status, Actions& actions);
  void Fence(const std::string& epoch, const std::string& reason, Actions& actions);
  void Break(const std::string& epoch, const std::string& reason, Actions& actions);
  void Ready(const Member& member, const std::string& epoch, Actions& actions);
  void Meet(Id id, const v1::Rendezvous& rendezvous, Actions& actions);
  void Renew(const std::string& reason, Actions& actions);

  MembershipOptions options_;
  std::vector<Member> members_;
  std::vector<Epoch> epochs_;  // oldest first; only the last may be building
  uint64_t last_worker_ = 0;
  uint64_t last_epoch_ = 0;
  std::optional<Time> last_tick_;
  std::chrono::milliseconds counted_{0};
  int breaks_ = 0;                     // in a row
  std::chrono::milliseconds rest_{0};  // until the next attempt after a break
};

}  // namespace ringserve
