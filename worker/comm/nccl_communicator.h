// The communicator of GPU workers: raw NCCL, one group of sends and receives for each post, on a
// stream of its own. Members, a stream of events and the order of groups are all that is here;
// NCCL itself is behind NcclLink.
//
// Tickets are events: Then lets what is computed next wait for them on the device, and the host
// only when it is more than a few posts ahead. NCCL has no tags: it neither sees a transfer of
// another size nor that a peer is gone. The plan agrees on sizes, and the coordinator's fence or a
// deadline ends what waits for a lost peer.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "worker/comm/build_order.h"
#include "worker/comm/communicator.h"
#include "worker/comm/nccl_link.h"

namespace ringserve {

struct NcclOptions {
  // How many posts Then may leave behind that are not complete. 0: the host sees what it waited
  // for.
  int steps_ahead = 2;
  // Freeing what a communicator has may wait for the groups of another one, as long as they may
  // take.
  std::chrono::milliseconds abort_patience{90'000};
  // The device does not come to rest within that time: its memory is nobody's any more, and the
  // process is to end. Any thread. Not empty.
  std::function<void(const std::string& what)> on_stuck;
};

class NcclCommunicator : public Communicator {
 public:
  // `names` of the members, for messages, of which `self` is one. Waits for nobody: posts wait for
  // the end of the build. `on_built` is called once, on another thread: OK, or why it came to
  // nothing. `library` outlives this.
  NcclCommunicator(NcclLibrary& library, std::shared_ptr<BuildOrder> order, int self,
                   std::vector<std::string> names, NcclOptions options,
                   std::function<void(const absl::Status&)> on_built);

  // Ends it.
  ~NcclCommunicator() override;

  // The unique id that the members share: the build begins. Only the first counts.
  void Meet(const std::string& unique_id) override;

  absl::StatusOr<Ticket> Post(const TransferTag& tag, std::span<const SendOp> sends,
                              std::span<const RecvOp> recvs) override;
  absl::Status Then(Ticket ticket, Clock::time_point deadline) override;
  absl::Status Finish(Clock::time_point deadline) override;
  void Abort(absl::Status reason) override;
  std::vector<PeerCounters> counters() const override;

 private:
  // One post. It waits for its turn, is launching, or is on the stream.
  struct Group {
    Ticket ticket = 0;
    std::vector<SendOp> sends;
    std::vector<RecvOp> recvs;
    std::optional<NcclLink::Event> after;  // of the computing stream, when it was posted
    bool launched = false;
    std::vector<std::byte*> staged;         // by send, then by receive; null: it is in one piece
    std::optional<NcclLink::Event> behind;  // on the stream
  };

  // The keeper's: builds, waits for the end, and brings the device to rest.
  void Keep();
  absl::Status Build();
  absl::StatusOr<std::string> AwaitUniqueId();
  absl::Status AwaitTurn(uint64_t place);
  void Quieten();

  // The engine's. `done` is asked, with the link locked, after each advance.
  absl::Status Await(const std::function<absl::StatusOr<bool>()>& done, Clock::time_point deadline);
  absl::StatusOr<bool> Advance(const std::function<absl::StatusOr<bool>()>& done);
  absl::Status AdvanceLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(link_mu_);
  absl::Status LaunchLocked(Group& group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(link_mu_);
  absl::Status FollowUpLocked(Group& group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(link_mu_);
  absl::Status StageLocked(Group& group, std::vector<NcclSend>& sends, std::vector<NcclRecv>& recvs)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(link_mu_);
  void Count(const Group& group);
  bool Complete(Ticket ticket) const;
  std::string PendingPeers() const;
  absl::Status End(absl::Status reason);

  // True: it has ended, now or before `wait` was over.
  bool EndsWithin(Clock::duration wait) const;
  absl::Status reason() const;

  NcclLibrary& library_;
  const std::shared_ptr<BuildOrder> order_;
  const uint64_t place_;
  const int self_;
  const std::vector<std::string> names_;  // by member
  const NcclOptions options_;
  const std::function<void(const absl::Status&)> on_built_;

  // The engine's own.
  Ticket last_ = 0;
  std::deque<Group> groups_;  // not complete, in the order of the posts

  // Held for one call of the link, and for its abort: the engine never waits for it.
  absl::Mutex link_mu_;
  std::unique_ptr<NcclLink> link_ ABSL_GUARDED_BY(link_mu_);

  mutable absl::Mutex mu_;
  std::optional<std::string> unique_id_ ABSL_GUARDED_BY(mu_);
  bool built_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status reason_ ABSL_GUARDED_BY(mu_);  // not OK: it has ended
  bool quiet_ ABSL_GUARDED_BY(mu_) = false;   // and nothing moves any more
  std::vector<PeerCounters> counters_ ABSL_GUARDED_BY(mu_);

  std::thread keeper_;
};

}  // namespace ringserve
