// What this worker is in its group: its id, and for each epoch that is alive its seat and
// communicator. Several epochs may live at once: an old one drains while the new one takes the new
// jobs. Thread safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "ringserve/v1/cluster.pb.h"
#include "worker/comm/communicator.h"
#include "worker/comm/epoch_line.h"

namespace ringserve {

// This worker's place in an epoch.
struct Seat {
  int index = 0;
  int members = 0;
  std::shared_ptr<Communicator> communicator;
};

class Seats {
 public:
  // Builds an epoch's communicator without waiting for the other members. line.built says when the
  // epoch may be used.
  using Build = std::function<absl::StatusOr<std::shared_ptr<Communicator>>(const v1::Epoch&,
                                                                            const EpochLine& line)>;

  explicit Seats(Build build) : build_(std::move(build)) {}

  void Join(const std::string& worker_id);

  // Takes the seat. INVALID_ARGUMENT: the epoch has no members, or none with this index; Build's
  // statuses.
  absl::Status Enter(const v1::Epoch& epoch, const EpochLine& line);

  // Hands the token to the epoch's communicator. Nothing where there is no seat in it.
  void Meet(const std::string& epoch, const std::string& token) const;

  // Aborts the epoch's communicator with `reason` and forgets it. False if it was not known.
  bool Fence(const std::string& epoch, const absl::Status& reason);

  // Fences every epoch; the id is gone.
  void Leave(const absl::Status& reason);

  // UNAVAILABLE: this worker has no seat in that epoch.
  absl::StatusOr<Seat> Find(const std::string& epoch) const;

  std::string worker_id() const;

 private:
  const Build build_;
  mutable absl::Mutex mu_;
  std::string worker_id_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Seat> seats_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ringserve
