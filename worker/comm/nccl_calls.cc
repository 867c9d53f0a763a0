#include "worker/comm/nccl_calls.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ringserve {
namespace {

absl::Status Cuda(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorString(result)));
}

// What is in progress is no error: Settled looks after it.
absl::Status Nccl(ncclResult_t result, ncclComm_t communicator, const char* what) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  const std::string message =
      absl::StrCat(what, ": ", ncclGetErrorString(result), ": ", ncclGetLastError(communicator));
  const bool others =
      result == ncclRemoteError || result == ncclSystemError || result == ncclTimeout;
  return others ? absl::UnavailableError(message) : absl::InternalError(message);
}

class CudaNcclLink : public NcclLink {
 public:
  explicit CudaNcclLink(const std::function<void*()>& computing_stream)
      : computing_stream_(computing_stream) {}

  // After a Connect that failed, or Abort.
  ~CudaNcclLink() override {
    for (const auto& [event, handle] : events_) cudaEventDestroy(handle);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Begin(const ncclUniqueId& id, int members, int self) {
    // Not behind what others do: its groups run beside the computing.
    absl::Status status = Cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                               "cudaStreamCreateWithFlags");
    if (!status.ok()) return status;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t result = ncclCommInitRankConfig(&communicator_, members, id, self, &config);
    status = Nccl(result, nullptr, "ncclCommInitRankConfig");
    if (!status.ok() && communicator_ != nullptr) Abort();
    return status;
  }

  absl::StatusOr<bool> Settled() override {
    ncclResult_t state = ncclSuccess;
    absl::Status status =
        Nccl(ncclCommGetAsyncError(communicator_, &state), communicator_, "ncclCommGetAsyncError");
    if (status.ok()) status = Nccl(state, communicator_, "NCCL");
    if (!status.ok()) return status;
    return state == ncclSuccess;
  }

  absl::Status Launch(const std::vector<NcclSend>& sends,
                      const std::vector<NcclRecv>& recvs) override {
    absl::Status status = Nccl(ncclGroupStart(), communicator_, "ncclGroupStart");
    for (const NcclSend& send : sends) {
      if (!status.ok()) break;
      status = Nccl(ncclSend(send.bytes.data(), send.bytes.size(), ncclUint8, send.peer,
                             communicator_, stream_),
                    communicator_, "ncclSend");
    }
    for (const NcclRecv& recv : recvs) {
      if (!status.ok()) break;
      status = Nccl(ncclRecv(recv.bytes.data(), recv.bytes.size(), ncclUint8, recv.peer,
                             communicator_, stream_),
                    communicator_, "ncclRecv");
    }
    // A group that was started must be ended, whatever became of it.
    const absl::Status ended = Nccl(ncclGroupEnd(), communicator_, "ncclGroupEnd");
    return status.ok() ? ended : status;
  }

  absl::StatusOr<Event> Mark() override { return MarkOn(stream_); }
  absl::StatusOr<Event> MarkComputing() override { return MarkOn(ComputingStream()); }

  absl::Status Follow(Event event) override {
    return Cuda(cudaStreamWaitEvent(stream_, events_.at(event), 0), "cudaStreamWaitEvent");
  }
  absl::Status ComputingFollows(Event event) override {
    return Cuda(cudaStreamWaitEvent(ComputingStream(), events_.at(event), 0),
                "cudaStreamWaitEvent");
  }

  absl::StatusOr<bool> Reached(Event event) override {
    const cudaError_t result = cudaEventQuery(events_.at(event));
    if (result == cudaErrorNotReady) return false;
    absl::Status status = Cuda(result, "cudaEventQuery");
    if (!status.ok()) return status;
    return true;
  }

  // CUDA keeps what still waits for it.
  void Forget(Event event) override {
    cudaEventDestroy(events_.at(event));
    events_.erase(event);
  }

  absl::StatusOr<std::byte*> Take(size_t bytes) override {
    void* memory = nullptr;
    absl::Status status = Cuda(cudaMallocAsync(&memory, bytes, stream_), "cudaMallocAsync");
    if (!status.ok()) return status;
    return static_cast<std::byte*>(memory);
  }
  absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes) override {
    return Cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_),
                "cudaMemcpyAsync");
  }
  absl::Status Give(std::byte* memory) override {
    return Cuda(cudaFreeAsync(memory, stream_), "cudaFreeAsync");
  }

  // An error here is of what is being ended, and nobody's any more; that the stream comes to its
  // end is what counts.
  void Abort() override {
    static_cast<void>(ncclCommAbort(communicator_));
    static_cast<void>(cudaStreamSynchronize(stream_));
  }

 private:
  cudaStream_t ComputingStream() const { return static_cast<cudaStream_t>(computing_stream_()); }

  absl::StatusOr<Event> MarkOn(cudaStream_t stream) {
    cudaEvent_t event = nullptr;
    absl::Status status =
        Cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    if (!status.ok()) return status;
    events_[++last_event_] = event;
    status = Cuda(cudaEventRecord(event, stream), "cudaEventRecord");
    if (!status.ok()) return status;
    return last_event_;
  }

  const std::function<void*()>& computing_stream_;
  cudaStream_t stream_ = nullptr;
  ncclComm_t communicator_ = nullptr;
  std::map<Event, cudaEvent_t> events_;
  Event last_event_ = 0;
};

class CudaNcclLibrary : public NcclLibrary {
 public:
  CudaNcclLibrary(int device, std::function<void*()> computing_stream)
      : device_(device), computing_stream_(std::move(computing_stream)) {}

  absl::StatusOr<std::string> MakeUniqueId() override {
    ncclUniqueId id;
    absl::Status status = Nccl(ncclGetUniqueId(&id), nullptr, "ncclGetUniqueId");
    if (!status.ok()) return status;
    return std::string(id.internal, sizeof(id.internal));
  }

  absl::StatusOr<std::unique_ptr<NcclLink>> Connect(const std::string& unique_id, int members,
                                                    int self) override {
    ncclUniqueId id;
    if (unique_id.size() != sizeof(id.internal)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a unique id of NCCL has ", sizeof(id.internal), " bytes, not ", unique_id.size()));
    }
    std::memcpy(id.internal, unique_id.data(), sizeof(id.internal));
    absl::Status status = Cuda(cudaSetDevice(device_), "cudaSetDevice");  // of this thread
    if (!status.ok()) return status;
    auto link = std::make_unique<CudaNcclLink>(computing_stream_);
    status = link->Begin(id, members, self);
    if (!status.ok()) return status;
    return link;
  }

 private:
  const int device_;
  const std::function<void*()> computing_stream_;
};

}  // namespace

std::string NcclVersion() {
  int version = 0;
  ncclGetVersion(&version);
  return absl::StrCat(version / 10'000, ".", version % 10'000 / 100, ".", version % 100);
}

std::unique_ptr<NcclLibrary> MakeNcclLibrary(int device, std::function<void*()> computing_stream) {
  setenv("NCCL_RAS_ENABLE", "0", 1);
  return std::make_unique<CudaNcclLibrary>(device, std::move(computing_stream));
}

}  // namespace ringserve
