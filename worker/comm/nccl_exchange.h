// Builds the NcclCommunicators of a worker's epochs. The epoch's first member makes the unique id
// that they need, and the coordinator passes it on. Whoever lets go of a communicator does not wait
// until the device has come to rest: a thread here does.
#pragma once

#include <deque>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "ringserve/v1/cluster.pb.h"
#include "worker/comm/build_order.h"
#include "worker/comm/communicator.h"
#include "worker/comm/epoch_line.h"
#include "worker/comm/nccl_communicator.h"
#include "worker/comm/nccl_link.h"

namespace ringserve {

class NcclExchange {
 public:
  NcclExchange(std::unique_ptr<NcclLibrary> library, NcclOptions options);

  // After its communicators were let go of: waits for their ends.
  ~NcclExchange();

  // The communicator of an epoch that has members, and one with its index. Waits for nobody.
  // MakeUniqueId's statuses.
  absl::StatusOr<std::shared_ptr<Communicator>> Build(const v1::Epoch& epoch,
                                                      const EpochLine& line);

 private:
  void Release(std::unique_ptr<NcclCommunicator> communicator);
  void EndReleased();

  const std::unique_ptr<NcclLibrary> library_;
  const NcclOptions options_;
  const std::shared_ptr<BuildOrder> order_ = std::make_shared<BuildOrder>();

  absl::Mutex mu_;
  std::deque<std::unique_ptr<NcclCommunicator>> released_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread ender_;
};

}  // namespace ringserve
