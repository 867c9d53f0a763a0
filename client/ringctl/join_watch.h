// Asks a coordinator, again and again, whether the workers that are expected have joined. Has a
// thread of its own, so that a coordinator that does not answer holds nobody up.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "ringserve/client.h"

namespace ringserve {

class JoinWatch {
 public:
  explicit JoinWatch(std::unique_ptr<Client> client);
  // Waits for the question in flight: end the coordinator first.
  ~JoinWatch();

  // The process ids of all workers that are to join: a new question, whatever was answered before.
  void Expect(std::set<int64_t> pids);

  // Readable when TakeAllJoined may say true.
  int fd() const { return event_; }
  // True once per Expect: all of them are members of one epoch.
  bool TakeAllJoined();

  // How many of those expected were members when last asked.
  int joined() const;

 private:
  void Loop();

  const std::unique_ptr<Client> client_;
  const int event_;
  mutable absl::Mutex mu_;
  std::set<int64_t> expected_ ABSL_GUARDED_BY(mu_);
  uint64_t question_ ABSL_GUARDED_BY(mu_) = 0;  // counts Expect
  bool answered_ ABSL_GUARDED_BY(mu_) = true;
  int joined_ ABSL_GUARDED_BY(mu_) = 0;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace ringserve
