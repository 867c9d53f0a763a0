// The members of one group over a fake NCCL, each with what a worker process has one of.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "tests/worker/comm/fake_nccl.h"
#include "worker/comm/build_order.h"
#include "worker/comm/nccl_communicator.h"

namespace ringserve::test {

class NcclGroup {
 public:
  using Members = std::vector<std::shared_ptr<NcclCommunicator>>;

  NcclGroup(int size, uint64_t seed) : fabric_(seed) {
    for (int member = 0; member < size; ++member) {
      libraries_.push_back(fabric_.MakeLibrary());
      orders_.push_back(std::make_shared<BuildOrder>());
    }
  }

  FakeNccl& fabric() { return fabric_; }
  int size() const { return static_cast<int>(libraries_.size()); }

  // One member's communicator. The build begins when it hears of the unique id.
  std::shared_ptr<NcclCommunicator> Build(int member, NcclOptions options = {}) {
    std::vector<std::string> names;
    names.reserve(size());
    for (int other = 0; other < size(); ++other) names.push_back(absl::StrCat("worker ", other));
    if (options.on_stuck == nullptr) {
      options.on_stuck = [this](const std::string& what) { Remember(stuck_, what); };
    }
    return std::make_shared<NcclCommunicator>(
        *libraries_[member], orders_[member], member, std::move(names), std::move(options),
        [this](const absl::Status& status) { Remember(built_, status.ToString()); });
  }

  // Those of all members, who have heard of it.
  Members BuildAll(const std::string& unique_id, const NcclOptions& options = {}) {
    Members members;
    for (int member = 0; member < size(); ++member) {
      members.push_back(Build(member, options));
      members.back()->Meet(unique_id);
    }
    return members;
  }

  // What builds have come to, and what was found stuck, in the order of events.
  std::vector<std::string> built() { return Remembered(built_); }
  std::vector<std::string> stuck() { return Remembered(stuck_); }

 private:
  void Remember(std::vector<std::string>& list, const std::string& what) {
    absl::MutexLock lock(&mu_);
    list.push_back(what);
  }
  std::vector<std::string> Remembered(const std::vector<std::string>& list) {
    absl::MutexLock lock(&mu_);
    return list;
  }

  FakeNccl fabric_;
  std::vector<std::unique_ptr<NcclLibrary>> libraries_;
  std::vector<std::shared_ptr<BuildOrder>> orders_;
  absl::Mutex mu_;
  std::vector<std::string> built_, stuck_;  // under mu_
};

}  // namespace ringserve::test
