#include "tests/worker/comm/nccl_transport.h"

#include <cstdio>
#include <cstdlib>

#include "tests/worker/comm/fake_nccl.h"
#include "worker/comm/build_order.h"
#include "worker/comm/nccl_communicator.h"

namespace ringserve::test {
namespace {

void EndBadly(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

class NcclTransport : public Transport {
 public:
  explicit NcclTransport(FakeNccl& fabric) : library_(fabric.MakeLibrary()) {}

  std::string address() const override { return "fake"; }

  std::shared_ptr<Communicator> Build(const std::string& id,
                                      const std::vector<std::string>& addresses,
                                      int index) override {
    std::vector<std::string> names;
    for (size_t member = 0; member < addresses.size(); ++member) {
      names.push_back(absl::StrCat("worker ", member));
    }
    auto communicator = std::make_shared<NcclCommunicator>(
        *library_, order_, index, std::move(names),
        NcclOptions{.steps_ahead = 0, .abort_patience = kPatience, .on_stuck = EndBadly},
        [](const absl::Status&) {});
    communicator->Meet(id);
    return communicator;
  }

 private:
  const std::unique_ptr<NcclLibrary> library_;
  const std::shared_ptr<BuildOrder> order_ = std::make_shared<BuildOrder>();
};

}  // namespace

Implementation NcclOverFake() {
  // A new one for each test.
  const auto fabric = std::make_shared<std::unique_ptr<FakeNccl>>();
  const auto seed = std::make_shared<uint64_t>(0);
  return {.name = "NcclOverFake",
          .make = [fabric] { return std::make_unique<NcclTransport>(**fabric); },
          .prepare = [fabric, seed] { *fabric = std::make_unique<FakeNccl>(++*seed); },
          .carries_tags = false,
          .sees_peers = false};
}

}  // namespace ringserve::test
