// Which device is used, and what is said where it cannot be.
#include "worker/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ringserve {
namespace {

using ::testing::HasSubstr;

CudaMachine MachineWith(std::vector<CudaDevice> devices) {
  return {.built = true,
          .runtime = 13020,
          .driver = 13030,
          .release = "580.65.06",
          .devices = std::move(devices),
          .nccl = "2.30.7"};
}

const CudaDevice kCard = {"NVIDIA H200", 9, 0, 150'000'000'000};
const CudaDevice kOldCard = {"Tesla V100", 7, 0, 16'000'000'000};

std::string WhyNot(const std::string& asked, const CudaMachine& machine) {
  const absl::StatusOr<std::string> chosen = ChooseDevice(asked, machine);
  if (chosen.ok()) return "chosen: " + *chosen;
  EXPECT_TRUE(absl::IsFailedPrecondition(chosen.status())) << chosen.status();
  return std::string(chosen.status().message());
}

TEST(Device, OnlyKnownNamesPassTheCheck) {
  for (const char* name : {"auto", "cpu", "cuda:0", "cuda:15"}) {
    EXPECT_TRUE(CheckDevice(name).ok()) << name;
  }
  for (const char* name : {"", "tpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda: 1",
                           "cuda:1 ", "cuda:99999999999", "CPU", "cpu:0"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckDevice(name))) << name;
  }
}

TEST(Device, WithoutAWishItIsTheFirstGpuWhereThatCanBeServedElseTheCpu) {
  for (const CudaMachine& machine :
       {CudaMachine{}, MachineWith({}), MachineWith({kOldCard, kCard})}) {
    EXPECT_EQ(*ChooseDevice("auto", machine), "cpu");
  }
  CudaMachine broken = MachineWith({kCard});
  broken.error = "system not yet initialized";
  EXPECT_EQ(*ChooseDevice("auto", broken), "cpu");
  EXPECT_EQ(*ChooseDevice("auto", MachineWith({kCard, kOldCard})), "cuda:0");
}

TEST(Device, TheOneAskedForIsUsedWhereItCanBeServed) {
  for (const CudaMachine& machine : {CudaMachine{}, MachineWith({}), MachineWith({kCard})}) {
    EXPECT_EQ(*ChooseDevice("cpu", machine), "cpu");
  }
  EXPECT_EQ(*ChooseDevice("cuda:0", MachineWith({kCard})), "cuda:0");
  EXPECT_EQ(*ChooseDevice("cuda:1", MachineWith({kOldCard, kCard})), "cuda:1");
  EXPECT_EQ(*ChooseDevice("cuda:00", MachineWith({kCard})), "cuda:0");
}

TEST(Device, OthersAreToldWhatAGpuIsAndItsVersions) {
  const GpuFacts facts = FactsOf("cuda:1", MachineWith({kOldCard, kCard}));
  EXPECT_EQ(facts.name, "NVIDIA H200");
  EXPECT_EQ(facts.driver, "580.65.06");
  EXPECT_EQ(facts.cuda, "13.2");
  EXPECT_EQ(facts.nccl, "2.30.7");
  CudaMachine reticent = MachineWith({kCard});
  reticent.release = "";
  EXPECT_EQ(FactsOf("cuda:0", reticent).driver, "CUDA 13.3");
  const GpuFacts none = FactsOf("cpu", MachineWith({kCard}));
  EXPECT_EQ(none.name + none.driver + none.cuda + none.nccl, "");
}

TEST(Device, AGpuThatCannotBeServedIsRefusedWithWhatIsMissing) {
  EXPECT_EQ(WhyNot("cuda:0", {}),
            "--device cuda:0: no CUDA device: this program is built without CUDA (./dev build "
            "cuda)");
  EXPECT_EQ(WhyNot("cuda:1", {.built = true, .runtime = 13020}),
            "--device cuda:1: no CUDA device: there is no NVIDIA driver; CUDA 13.2 wants one that "
            "serves CUDA 13.0 or newer");
  EXPECT_EQ(WhyNot("cuda:0", {.built = true, .runtime = 13020, .driver = 12080, .too_old = true}),
            "--device cuda:0: no CUDA device: the NVIDIA driver serves CUDA 12.8 at most; CUDA "
            "13.2 wants one that serves CUDA 13.0 or newer");
  EXPECT_EQ(WhyNot("cuda:0", MachineWith({})),
            "--device cuda:0: no CUDA device: the NVIDIA driver sees none");
  CudaMachine broken = MachineWith({kCard});
  broken.error = "system not yet initialized";
  EXPECT_THAT(WhyNot("cuda:0", broken), HasSubstr("CUDA says: system not yet initialized"));
}

TEST(Device, AGpuThatIsNotThereIsRefusedWithHowManyAre) {
  EXPECT_EQ(WhyNot("cuda:1", MachineWith({kCard})),
            "--device cuda:1: this machine has 1 CUDA device, counted from 0");
  EXPECT_EQ(WhyNot("cuda:7", MachineWith({kCard, kCard})),
            "--device cuda:7: this machine has 2 CUDA devices, counted from 0");
}

TEST(Device, AGpuThatIsTooOldIsRefusedWithWhatIsServed) {
  EXPECT_EQ(WhyNot("cuda:0", MachineWith({kOldCard})),
            "--device cuda:0: Tesla V100, compute capability 7.0, 14.9 GiB: too old: compute "
            "capability 7.5 or newer is served");
}

TEST(Device, AGpuThatDoesNotAnswerLeavesTheOthersInService) {
  const CudaMachine machine = MachineWith({kCard, {.error = "uncorrectable ECC error"}});
  EXPECT_EQ(*ChooseDevice("cuda:0", machine), "cuda:0");
  EXPECT_EQ(WhyNot("cuda:1", machine),
            "--device cuda:1: a GPU: CUDA says: uncorrectable ECC error");
  EXPECT_EQ(ListDevices(2, machine),
            "cpu     2 threads\n"
            "cuda:0  NVIDIA H200, compute capability 9.0, 139.7 GiB\n"
            "cuda:1  a GPU; CUDA says: uncorrectable ECC error\n"
            "built with CUDA 13.2 and NCCL 2.30.7\n");
}

TEST(Device, TheListHasALineForEach) {
  EXPECT_EQ(ListDevices(2, {}),
            "cpu     2 threads\n"
            "no CUDA device: this program is built without CUDA (./dev build cuda)\n");
  EXPECT_EQ(ListDevices(1, MachineWith({})),
            "cpu     1 thread\n"
            "no CUDA device: the NVIDIA driver sees none\n"
            "built with CUDA 13.2 and NCCL 2.30.7\n");
  EXPECT_EQ(ListDevices(16, MachineWith({kCard, kOldCard})),
            "cpu     16 threads\n"
            "cuda:0  NVIDIA H200, compute capability 9.0, 139.7 GiB\n"
            "cuda:1  Tesla V100, compute capability 7.0, 14.9 GiB; too old: compute capability 7.5 "
            "or newer is served\n"
            "built with CUDA 13.2 and NCCL 2.30.7\n");
}

}  // namespace
}  // namespace ringserve
