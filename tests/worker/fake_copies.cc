#include "tests/worker/fake_copies.h"

#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace ringserve::test {
namespace {

constexpr std::byte kNotYet{0xdb};

std::string BytesAt(const std::byte* data, uint64_t size) {
  return std::string(reinterpret_cast<const char*>(data), size);
}

bool Meet(const std::byte* a, uint64_t a_size, const std::byte* b, uint64_t b_size) {
  return a < b + b_size && b < a + a_size;
}

}  // namespace

FakeCopies::FakeCopies(Options options) : options_(options), random_(options.seed) {
  if (options_.by_itself) thread_ = std::thread([this] { Run(); });
}

FakeCopies::~FakeCopies() {
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<std::byte*> FakeCopies::TakeDevice(uint64_t bytes) {
  std::lock_guard lock(mu_);
  absl::Status status = Check();
  if (!status.ok()) return status;
  if (bytes == 0) Fault("device memory of 0 bytes");
  if (device_bytes_ + bytes > options_.device_bytes) {
    return absl::ResourceExhaustedError("the device has not so much");
  }
  const int protection = options_.out_of_reach ? PROT_NONE : PROT_READ | PROT_WRITE;
  void* memory = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return absl::ResourceExhaustedError("mmap");
  auto* address = static_cast<std::byte*>(memory);
  device_[address] = {bytes, std::vector<std::byte>(options_.out_of_reach ? bytes : 0)};
  device_bytes_ += bytes;
  return address;
}

void FakeCopies::GiveDevice(std::byte* memory) {
  std::lock_guard lock(mu_);
  const auto block = device_.find(memory);
  if (block == device_.end()) {
    Fault("device memory given back that was not taken");
    return;
  }
  ExpectUntouched(memory, block->second.size, "device memory");
  device_bytes_ -= block->second.size;
  munmap(memory, block->second.size);
  device_.erase(block);
}

absl::StatusOr<std::byte*> FakeCopies::TakePinned(uint64_t bytes) {
  std::lock_guard lock(mu_);
  absl::Status status = Check();
  if (!status.ok()) return status;
  if (pinned_bytes_ + bytes > options_.pinned_bytes) {
    return absl::ResourceExhaustedError("the system pins no more");
  }
  auto* memory = new std::byte[bytes];
  pinned_[memory] = {bytes, {}};
  pinned_bytes_ += bytes;
  return memory;
}

void FakeCopies::GivePinned(std::byte* memory) {
  std::lock_guard lock(mu_);
  const auto block = pinned_.find(memory);
  if (block == pinned_.end()) {
    Fault("pinned memory given back that was not taken");
    return;
  }
  ExpectUntouched(memory, block->second.size, "pinned memory");
  pinned_bytes_ -= block->second.size;
  pinned_.erase(block);
  delete[] memory;
}

absl::Status FakeCopies::Begin(Way way, std::byte* to, const std::byte* from, uint64_t bytes) {
  std::lock_guard lock(mu_);
  absl::Status status = Check();
  if (!status.ok()) return status;
  const std::byte* there = Real(device_, way == kIn ? to : from, bytes);
  if (there == nullptr || bytes == 0) {
    Fault("a copy that is not inside one piece of device memory");
    return absl::InternalError("illegal address");
  }
  Copy copy{to, from, bytes, {}};
  if (way == kIn) {
    if (Real(pinned_, from, bytes) == nullptr) Fault("a copy in of memory not pinned");
    copy.seen = BytesAt(from, bytes);
  } else {
    std::memset(to, static_cast<int>(kNotYet), bytes);  // whoever reads too early sees this
  }
  copies_[way].push_back(std::move(copy));
  ++begun_[way];
  changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<DeviceCopies::Mark> FakeCopies::Place(Way way) {
  std::lock_guard lock(mu_);
  absl::Status status = Check();
  if (!status.ok()) return status;
  return begun_[way];
}

absl::StatusOr<bool> FakeCopies::Reached(Way way, Mark mark) {
  std::lock_guard lock(mu_);
  absl::Status status = Check();
  if (!status.ok()) return status;
  if (mark > begun_[way]) Fault("a mark that was never placed");
  return done_[way] >= mark;
}

bool FakeCopies::Step(Way way) {
  std::lock_guard lock(mu_);
  return StepLocked(way);
}

void FakeCopies::Fail() {
  std::lock_guard lock(mu_);
  failing_ = true;
}

void FakeCopies::Recover() {
  std::lock_guard lock(mu_);
  failing_ = false;
}

std::string FakeCopies::faults() {
  std::lock_guard lock(mu_);
  return faults_;
}

uint64_t FakeCopies::device_bytes() {
  std::lock_guard lock(mu_);
  return device_bytes_;
}

uint64_t FakeCopies::pinned_bytes() {
  std::lock_guard lock(mu_);
  return pinned_bytes_;
}

uint64_t FakeCopies::begun(Way way) {
  std::lock_guard lock(mu_);
  return begun_[way];
}

std::string FakeCopies::Read(const std::byte* memory, uint64_t bytes) {
  std::lock_guard lock(mu_);
  return BytesAt(Real(device_, memory, bytes), bytes);
}

void FakeCopies::Fill(std::byte* memory, const std::string& bytes) {
  std::lock_guard lock(mu_);
  std::memcpy(Real(device_, memory, bytes.size()), bytes.data(), bytes.size());
}

void FakeCopies::Run() {
  std::unique_lock lock(mu_);
  for (;;) {
    changed_.wait(lock,
                  [&] { return stopping_ || !copies_[kIn].empty() || !copies_[kOut].empty(); });
    if (stopping_) return;
    const std::chrono::microseconds later(random_() % 4 == 0 ? random_() % 300 : 0);
    lock.unlock();
    std::this_thread::sleep_for(later);
    lock.lock();
    StepLocked(random_() % 2 == 0 || copies_[kOut].empty() ? kIn : kOut);
  }
}

bool FakeCopies::StepLocked(Way way) {
  if (copies_[way].empty()) return false;
  const Copy copy = std::move(copies_[way].front());
  copies_[way].pop_front();
  if (way == kIn) {
    if (BytesAt(copy.from, copy.bytes) != copy.seen) {
      Fault("a piece was written under its copy");
    }
    std::memcpy(Real(device_, copy.to, copy.bytes), copy.from, copy.bytes);
  } else {
    std::memcpy(copy.to, Real(device_, copy.from, copy.bytes), copy.bytes);
  }
  ++done_[way];
  return true;
}

absl::Status FakeCopies::Check() const {
  return failing_ ? absl::InternalError("an illegal memory access was encountered")
                  : absl::OkStatus();
}

std::byte* FakeCopies::Real(Blocks& blocks, const std::byte* address, uint64_t bytes) {
  auto block = blocks.upper_bound(address);
  if (block == blocks.begin()) return nullptr;
  --block;
  const uint64_t offset = address - block->first;
  if (offset + bytes > block->second.size) return nullptr;
  if (block->second.bytes.empty()) return const_cast<std::byte*>(address);
  return block->second.bytes.data() + offset;
}

void FakeCopies::Fault(const std::string& what) {
  faults_ += what + "\n";
  if (!options_.abort_on_fault) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

void FakeCopies::ExpectUntouched(const std::byte* block, uint64_t size, const char* what) {
  for (const std::deque<Copy>& copies : copies_) {
    for (const Copy& copy : copies) {
      if (Meet(copy.to, copy.bytes, block, size) || Meet(copy.from, copy.bytes, block, size)) {
        Fault(std::string(what) + " given back under a copy");
      }
    }
  }
}

}  // namespace ringserve::test
