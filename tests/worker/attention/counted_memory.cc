#include "tests/worker/attention/counted_memory.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

namespace ringserve::test {
namespace {

struct Count {
  std::atomic<int64_t> held{0};
  int64_t most = 0;  // written by the thread that takes
};

// Shared with every block that counts here: those may outlive the thread.
thread_local std::shared_ptr<Count> count = std::make_shared<Count>();

constexpr size_t kAlignment = 64;

struct Header {
  std::shared_ptr<Count> count;
  int64_t bytes = 0;
};
static_assert(sizeof(Header) <= kAlignment);

void Release(void* block) {
  auto* header = static_cast<Header*>(block);
  header->count->held -= header->bytes;
  header->~Header();
  std::free(block);
}

class CountingAllocator : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::DeviceType::CPU)};
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* block = std::aligned_alloc(kAlignment, kAlignment + rounded);
    if (block == nullptr) throw std::bad_alloc();
    new (block) Header{count, static_cast<int64_t>(bytes)};
    count->most = std::max(count->most, count->held += static_cast<int64_t>(bytes));
    return {static_cast<char*>(block) + kAlignment, block, &Release,
            c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};

}  // namespace

void CountMemory() {
  static CountingAllocator allocator;
  c10::SetCPUAllocator(&allocator, /*priority=*/1);
}

void ResetMemoryCount() { count = std::make_shared<Count>(); }

uint64_t MostMemoryHeld() { return static_cast<uint64_t>(count->most); }

}  // namespace ringserve::test
