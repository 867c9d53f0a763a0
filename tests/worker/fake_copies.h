// A device that is none, for staging: its memory is the host's, and its copies happen later, out of
// the caller's sight, and in the order in which they were begun. Stricter than a real one: what
// would go wrong there only at times is noted here as a fault.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "worker/device_copies.h"

namespace ringserve::test {

class FakeCopies : public DeviceCopies {
 public:
  struct Options {
    // Copies happen by themselves, after moments that this seeds; else when Step says so.
    bool by_itself = false;
    uint64_t seed = 0;
    // Whoever reads or writes device memory itself is ended by the system; else LibTorch may.
    bool out_of_reach = true;
    bool abort_on_fault = false;
    uint64_t device_bytes = uint64_t{1} << 40, pinned_bytes = uint64_t{1} << 40;
  };

  explicit FakeCopies(Options options);
  ~FakeCopies() override;  // what is under way is never done

  absl::StatusOr<std::byte*> TakeDevice(uint64_t bytes) override;
  void GiveDevice(std::byte* memory) override;
  absl::StatusOr<std::byte*> TakePinned(uint64_t bytes) override;
  void GivePinned(std::byte* memory) override;
  absl::Status Begin(Way way, std::byte* to, const std::byte* from, uint64_t bytes) override;
  absl::StatusOr<Mark> Place(Way way) override;
  absl::StatusOr<bool> Reached(Way way, Mark mark) override;

  // Does the oldest copy of this way; false: there is none.
  bool Step(Way way);
  // From now on every call that may fail does, until Recover: no real device does that.
  void Fail();
  void Recover();

  // What a device would not have forgiven, one a line.
  std::string faults();
  uint64_t device_bytes();  // taken and not given back
  uint64_t pinned_bytes();
  uint64_t begun(Way way);
  // As the device sees it.
  std::string Read(const std::byte* memory, uint64_t bytes);
  void Fill(std::byte* memory, const std::string& bytes);

 private:
  struct Block {
    uint64_t size = 0;
    std::vector<std::byte> bytes;  // empty: they lie where the address says
  };
  struct Copy {
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    uint64_t bytes = 0;
    std::string seen;  // what was to be copied when it was begun
  };
  using Blocks = std::map<const std::byte*, Block>;

  void Run();
  bool StepLocked(Way way);
  absl::Status Check() const;
  // Null: not inside one block.
  std::byte* Real(Blocks& blocks, const std::byte* address, uint64_t bytes);
  void Fault(const std::string& what);
  void ExpectUntouched(const std::byte* block, uint64_t size, const char* what);

  const Options options_;
  std::mutex mu_;
  std::condition_variable changed_;
  bool stopping_ = false, failing_ = false;
  Blocks device_, pinned_;
  uint64_t device_bytes_ = 0, pinned_bytes_ = 0;
  std::deque<Copy> copies_[2];
  Mark begun_[2] = {0, 0}, done_[2] = {0, 0};
  std::string faults_;
  std::mt19937_64 random_;
  std::thread thread_;
};

}  // namespace ringserve::test
