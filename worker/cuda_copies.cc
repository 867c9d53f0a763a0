#include "worker/cuda_copies.h"

#include <cuda_runtime_api.h>

#include <deque>
#include <exception>
#include <utility>

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/util/Exception.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace ringserve {
namespace {

namespace allocator = c10::cuda::CUDACachingAllocator;

absl::Status Cuda(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorString(result)));
}

// A stream for each way, so that uploads and downloads run beside each other and the computing.
class CudaCopies : public DeviceCopies {
 public:
  explicit CudaCopies(int device) : device_(device) {}

  ~CudaCopies() override {
    for (Lane& lane : lanes_) {
      for (const auto& [mark, event] : lane.events) cudaEventDestroy(event);
      if (lane.stream != nullptr) cudaStreamDestroy(lane.stream);
    }
  }

  absl::Status Open() {
    absl::Status status = Enter();
    for (Lane& lane : lanes_) {
      if (!status.ok()) return status;
      status = Cuda(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking),
                    "cudaStreamCreateWithFlags");
    }
    return status;
  }

  // Of the stream that writes it first. Whoever gives it back has waited for all others, so that it
  // may be taken again in the order of that stream.
  absl::StatusOr<std::byte*> TakeDevice(uint64_t bytes) override {
    absl::Status status = Enter();
    if (!status.ok()) return status;
    const cudaStream_t stream = lanes_[kIn].stream;
    void* memory = nullptr;
    try {
      memory = allocator::raw_alloc_with_stream(bytes, stream);
    } catch (const c10::OutOfMemoryError& error) {
      return absl::ResourceExhaustedError(error.what_without_backtrace());
    } catch (const std::exception& error) {
      return absl::InternalError(error.what());
    }
    status = Cuda(cudaMemsetAsync(memory, 0, bytes, stream), "cudaMemsetAsync");
    if (!status.ok()) return status;
    return static_cast<std::byte*>(memory);
  }

  void GiveDevice(std::byte* memory) override {
    try {
      allocator::raw_delete(memory);
    } catch (const std::exception&) {
      // The device has failed, which others have heard and will say.
    }
  }

  absl::StatusOr<std::byte*> TakePinned(uint64_t bytes) override {
    absl::Status status = Enter();
    if (!status.ok()) return status;
    void* memory = nullptr;
    const cudaError_t result = cudaHostAlloc(&memory, bytes, cudaHostAllocDefault);
    if (result == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());  // or the next call would seem to fail
      return absl::ResourceExhaustedError(
          absl::StrCat("the system does not pin ", bytes, " bytes"));
    }
    status = Cuda(result, "cudaHostAlloc");
    if (!status.ok()) return status;
    return static_cast<std::byte*>(memory);
  }

  void GivePinned(std::byte* memory) override { cudaFreeHost(memory); }

  absl::Status Begin(Way way, std::byte* to, const std::byte* from, uint64_t bytes) override {
    absl::Status status = Enter();
    if (!status.ok()) return status;
    const cudaMemcpyKind kind = way == kIn ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
    return Cuda(cudaMemcpyAsync(to, from, bytes, kind, lanes_[way].stream), "cudaMemcpyAsync");
  }

  absl::StatusOr<Mark> Place(Way way) override {
    absl::Status status = Enter();
    if (!status.ok()) return status;
    absl::MutexLock lock(&mu_);
    Lane& lane = lanes_[way];
    cudaEvent_t event = nullptr;
    status =
        Cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    if (!status.ok()) return status;
    lane.events.emplace_back(++lane.placed, event);
    status = Cuda(cudaEventRecord(event, lane.stream), "cudaEventRecord");
    if (!status.ok()) return status;
    return lane.placed;
  }

  absl::StatusOr<bool> Reached(Way way, Mark mark) override {
    absl::Status status = Enter();
    if (!status.ok()) return status;
    absl::MutexLock lock(&mu_);
    Lane& lane = lanes_[way];
    while (!lane.events.empty() && lane.reached < mark) {
      const auto [next, event] = lane.events.front();
      const cudaError_t result = cudaEventQuery(event);
      if (result == cudaErrorNotReady) return false;
      status = Cuda(result, "cudaEventQuery");
      if (!status.ok()) return status;
      cudaEventDestroy(event);
      lane.reached = next;
      lane.events.pop_front();
    }
    return lane.reached >= mark;
  }

 private:
  struct Lane {
    cudaStream_t stream = nullptr;
    std::deque<std::pair<Mark, cudaEvent_t>> events;  // not known to be reached
    Mark placed = 0, reached = 0;
  };

  // CUDA's calls are of the calling thread's device, which here is any of gRPC's.
  absl::Status Enter() const { return Cuda(cudaSetDevice(device_), "cudaSetDevice"); }

  const int device_;
  absl::Mutex mu_;  // for events and marks
  Lane lanes_[2];
};

}  // namespace

absl::StatusOr<std::shared_ptr<DeviceCopies>> MakeCudaCopies(int device) {
  auto copies = std::make_shared<CudaCopies>(device);
  absl::Status status = copies->Open();
  if (!status.ok()) return status;
  return copies;
}

}  // namespace ringserve
