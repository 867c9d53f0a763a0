#include "worker/seats.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace ringserve {

void Seats::Join(const std::string& worker_id) {
  absl::MutexLock lock(&mu_);
  worker_id_ = worker_id;
}

absl::Status Seats::Enter(const v1::Epoch& epoch, const EpochLine& line) {
  if (epoch.id().empty()) return absl::InvalidArgumentError("epoch.id is empty");
  if (epoch.index() < 0 || epoch.index() >= epoch.members_size()) {
    return absl::InvalidArgumentError(absl::StrCat("epoch.index is ", epoch.index(),
                                                   ": must be below ", epoch.members_size(),
                                                   ", the number of members"));
  }
  absl::StatusOr<std::shared_ptr<Communicator>> communicator = build_(epoch, line);
  if (!communicator.ok()) return communicator.status();
  Seat seat{.index = epoch.index(),
            .members = epoch.members_size(),
            .communicator = *std::move(communicator)};
  absl::MutexLock lock(&mu_);
  seats_.insert_or_assign(epoch.id(), std::move(seat));
  return absl::OkStatus();
}

void Seats::Meet(const std::string& epoch, const std::string& token) const {
  const absl::StatusOr<Seat> seat = Find(epoch);
  if (seat.ok()) seat->communicator->Meet(token);
}

bool Seats::Fence(const std::string& epoch, const absl::Status& reason) {
  std::shared_ptr<Communicator> fenced;  // destroyed without the lock: it may wait for its streams
  {
    absl::MutexLock lock(&mu_);
    const auto it = seats_.find(epoch);
    if (it == seats_.end()) return false;
    fenced = std::move(it->second.communicator);
    seats_.erase(it);
  }
  fenced->Abort(reason);
  return true;
}

void Seats::Leave(const absl::Status& reason) {
  std::map<std::string, Seat> fenced;
  {
    absl::MutexLock lock(&mu_);
    fenced.swap(seats_);
    worker_id_.clear();
  }
  for (auto& [epoch, seat] : fenced) seat.communicator->Abort(reason);
}

absl::StatusOr<Seat> Seats::Find(const std::string& epoch) const {
  absl::MutexLock lock(&mu_);
  const auto it = seats_.find(epoch);
  if (it == seats_.end()) {
    return absl::UnavailableError(absl::StrCat("this worker has no seat in epoch ", epoch));
  }
  return it->second;
}

std::string Seats::worker_id() const {
  absl::MutexLock lock(&mu_);
  return worker_id_;
}

}  // namespace ringserve
