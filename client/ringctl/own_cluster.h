// A local cluster for a while: `ringctl up` as a process of its own, whose log is kept aside.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/ringctl/child.h"

namespace ringserve {

class OwnCluster {
 public:
  // Runs this program's `up` on a free loopback port with `flags`, and waits until all workers have
  // joined. INTERNAL: the system refused. FAILED_PRECONDITION: it ended before; DEADLINE_EXCEEDED:
  // it took more than `patience`; either with the end of its log.
  static absl::StatusOr<std::unique_ptr<OwnCluster>> Start(const std::vector<std::string>& flags,
                                                           std::chrono::milliseconds patience);
  ~OwnCluster();  // tells it to end, and waits: seconds at most

  const std::string& address() const { return address_; }
  // The last lines that it and its processes have logged.
  std::string LogEnd() const;

 private:
  OwnCluster(Child up, int log) : up_(std::move(up)), log_(log) {}
  absl::Status AwaitReady(std::chrono::milliseconds patience);

  Child up_;
  const int log_;  // a file without a name
  std::string address_;
};

}  // namespace ringserve
