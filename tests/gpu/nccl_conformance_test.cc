// The conformance suite of Communicator (tests/worker/comm) over NCCL itself: ranks as threads,
// each with a GPU; where there are fewer, they share.
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "tests/gpu/gpus.h"
#include "tests/gpu/staged_communicator.h"
#include "tests/worker/comm/conformance.h"
#include "worker/comm/build_order.h"
#include "worker/comm/nccl_calls.h"
#include "worker/comm/nccl_communicator.h"

namespace ringserve::test {
namespace {

// Several ranks of one communicator on one GPU: refused by NCCL, but for this.
constexpr char kSharedGpuVariable[] = "NCCL_MULTI_RANK_GPU_ENABLE";

[[noreturn]] void EndBadly(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

// The unique id of each epoch of a test, which its ranks share.
class UniqueIds {
 public:
  std::string Of(const std::string& epoch, NcclLibrary& library) {
    absl::MutexLock lock(&mu_);
    std::string& id = ids_[epoch];
    if (id.empty()) {
      const absl::StatusOr<std::string> made = library.MakeUniqueId();
      REQUIRE_OK(made.status());
      id = *made;
    }
    return id;
  }

 private:
  absl::Mutex mu_;
  std::map<std::string, std::string> ids_;  // under mu_
};

class GpuTransport : public Transport {
 public:
  explicit GpuTransport(std::shared_ptr<UniqueIds> ids) : ids_(std::move(ids)) {}

  std::string address() const override { return "NCCL"; }

  std::shared_ptr<Communicator> Build(const std::string& epoch,
                                      const std::vector<std::string>& addresses,
                                      int index) override {
    const int device = ServedGpus()[index % ServedGpus().size()];
    if (library_ == nullptr) {
      library_ = MakeNcclLibrary(
          device, [] { return static_cast<void*>(c10::cuda::getCurrentCUDAStream().stream()); });
    }
    // The rank's thread is its engine: it computes on a stream of its own.
    const auto index_of = static_cast<c10::DeviceIndex>(device);
    c10::cuda::set_device(index_of);
    c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool(false, index_of));
    std::vector<std::string> names;
    for (size_t member = 0; member < addresses.size(); ++member) {
      names.push_back(absl::StrCat("worker ", member));
    }
    auto communicator = std::make_shared<NcclCommunicator>(
        *library_, order_, index, std::move(names),
        NcclOptions{.steps_ahead = 0, .abort_patience = 3 * kPatience, .on_stuck = EndBadly},
        [](const absl::Status&) {});
    communicator->Meet(ids_->Of(epoch, *library_));
    return std::make_shared<StagedCommunicator>(std::move(communicator), device);
  }

 private:
  const std::shared_ptr<UniqueIds> ids_;
  const std::shared_ptr<BuildOrder> order_ = std::make_shared<BuildOrder>();
  std::unique_ptr<NcclLibrary> library_;
};

Implementation NcclOverGpus() {
  setenv(kSharedGpuVariable, "1", 0);
  // New ones for each run of ranks.
  const auto ids = std::make_shared<std::shared_ptr<UniqueIds>>();
  return {.name = "Nccl",
          .make = [ids] { return std::make_unique<GpuTransport>(*ids); },
          .missing = WhyNoGpu(),
          .prepare = [ids] { *ids = std::make_shared<UniqueIds>(); },
          .carries_tags = false,
          .sees_peers = false};
}

INSTANTIATE_TEST_SUITE_P(Gpus, CommunicatorTest, ::testing::Values(NcclOverGpus()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace ringserve::test
