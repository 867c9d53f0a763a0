// How far a ring's thread may be ahead of a device that computes while it goes on, and for whom it
// waits first. The device is a stand-in that writes down what it is asked.
#include "worker/attention/ring_work.h"

#include <string>
#include <vector>

#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ringserve {
namespace {

using testing::ElementsAre;

std::vector<std::string> journal;
int recorded = 0;
bool fails = false;

constexpr c10::DeviceType kDevice = c10::DeviceType::PrivateUse1;

// Only what RingWork uses: events of the present stream.
class FakeDevice : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device device) const override { return device; }
  c10::Device getDevice() const override { return {kDevice, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {
    *event = reinterpret_cast<void*>(static_cast<intptr_t>(recorded++));
  }
  void synchronizeEvent(void* event) const override {
    journal.push_back("device " + std::to_string(reinterpret_cast<intptr_t>(event)));
    TORCH_CHECK(!fails, "the device is lost");
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, FakeDevice);

class FakeCommunicator : public Communicator {
 public:
  absl::StatusOr<Ticket> Post(const TransferTag&, std::span<const SendOp>,
                              std::span<const RecvOp>) override {
    return ++posted_;
  }
  absl::Status Then(Ticket ticket, Clock::time_point) override {
    journal.push_back("then " + std::to_string(ticket - 1));
    return status;
  }
  absl::Status Finish(Clock::time_point) override {
    journal.push_back("finish");
    return status;
  }
  void Abort(absl::Status) override {}
  std::vector<PeerCounters> counters() const override { return {}; }

  absl::Status status;

 private:
  Ticket posted_ = 0;
};

class RingWorkTest : public testing::Test {
 protected:
  RingWorkTest() {
    journal.clear();
    recorded = 0;
    fails = false;
  }

  absl::Status Steps(RingWork& work, int n) {
    for (int step = 0; step < n; ++step) {
      absl::Status status = work.Post(step, {}, {});
      if (status.ok()) status = work.Wait();
      if (!status.ok()) return status;
    }
    return work.Finish();
  }
  RingWork On(c10::Device device) {
    return {1, device, options_, communicator_, progress_, statistics_};
  }

  const RingOptions options_;
  FakeCommunicator communicator_;
  RingProgress progress_;
  RingStatistics statistics_;
};

TEST_F(RingWorkTest, IsOneStepAheadOfTheDeviceAtMost) {
  RingWork work = On({kDevice, 0});
  EXPECT_TRUE(Steps(work, 4).ok());
  // At the end, too, what the device has to do before a transfer is waited for before the transfer,
  // and what it does behind one, after it.
  EXPECT_THAT(journal, ElementsAre("then 0", "device 0", "then 1", "device 1", "then 2", "device 2",
                                   "then 3", "finish", "device 3"));
}

TEST_F(RingWorkTest, ACancelledJobStillWaitsForItsDeviceFirst) {
  RingWork work = On({kDevice, 0});
  progress_.cancelled = true;
  EXPECT_TRUE(Steps(work, 3).ok());
  EXPECT_THAT(journal, ElementsAre("then 0", "device 0", "then 1", "device 1", "then 2", "finish",
                                   "device 2"));
  EXPECT_TRUE(absl::IsAborted(work.Ended()));
}

TEST_F(RingWorkTest, ADeviceThatFailsKeepsNobodyFromTheExchanges) {
  RingWork work = On({kDevice, 0});
  fails = true;
  EXPECT_TRUE(Steps(work, 3).ok());
  EXPECT_THAT(journal, testing::Contains("then 2"));
  EXPECT_THAT(journal, testing::Contains("finish"));
  EXPECT_EQ(work.Ended().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(work.Ended().message()), testing::HasSubstr("the device is lost"));
}

TEST_F(RingWorkTest, AnExchangeThatBreaksIsTheEnd) {
  RingWork work = On({kDevice, 0});
  communicator_.status = absl::UnavailableError("a worker is gone");
  EXPECT_TRUE(absl::IsUnavailable(Steps(work, 3)));
  EXPECT_THAT(journal, ElementsAre("then 0"));
}

TEST_F(RingWorkTest, AProcessorIsNeverAhead) {
  RingWork work = On(c10::kCPU);
  EXPECT_TRUE(Steps(work, 2).ok());
  EXPECT_THAT(journal, ElementsAre("then 0", "then 1", "finish"));
}

}  // namespace
}  // namespace ringserve
