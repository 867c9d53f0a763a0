#include "tests/integration/raw_call.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "proto/chunk_sequence.h"
#include "proto/protocol.h"
#include "proto/status.h"

namespace ringserve::test {

std::shared_ptr<grpc::Channel> NewChannel(const std::string& address) {
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                   MakeChannelArguments());
}

RawCall::RawCall(std::shared_ptr<grpc::Channel> channel, std::chrono::milliseconds deadline,
                 const std::function<void(grpc::ClientContext&)>& prepare, bool backward)
    : channel_(std::move(channel)), stub_(v1::Attention::NewStub(channel_)) {
  context_.set_deadline(std::chrono::system_clock::now() + deadline);
  if (prepare) prepare(context_);
  stream_ = backward ? stub_->AttendBackward(&context_) : stub_->Attend(&context_);
}

RawCall::~RawCall() {
  if (finished_) return;
  Cancel();
  Finish().IgnoreError();
}

bool RawCall::Send(const v1::AttendRequest& message) { return stream_->Write(message); }

bool RawCall::SendHeader(const v1::AttendHeader& header) {
  v1::AttendRequest message;
  *message.mutable_header() = header;
  return Send(message);
}

bool RawCall::SendChunk(int tensor, uint64_t offset, std::string data) {
  v1::AttendRequest message;
  v1::Chunk* chunk = message.add_chunks();
  chunk->set_tensor(static_cast<v1::TensorId>(tensor));
  chunk->set_offset(offset);
  chunk->set_data(std::move(data));
  return Send(message);
}

bool RawCall::SendBytes(v1::TensorId tensor, const std::vector<std::byte>& bytes, size_t begin,
                        size_t end) {
  while (begin < end) {
    const size_t size = std::min<size_t>(end - begin, kChunkBytes);
    const auto* data = reinterpret_cast<const char*>(bytes.data()) + begin;
    if (!SendChunk(tensor, begin, std::string(data, size))) return false;
    begin += size;
  }
  return true;
}

bool RawCall::SendTensors(const Request& request) {
  return SendBytes(v1::TENSOR_ID_Q, request.tensors().q, 0, request.tensors().q.size()) &&
         SendBytes(v1::TENSOR_ID_K, request.tensors().k, 0, request.tensors().k.size()) &&
         SendBytes(v1::TENSOR_ID_V, request.tensors().v, 0, request.tensors().v.size());
}

bool RawCall::HalfClose() { return stream_->WritesDone(); }

std::optional<v1::AttendResponse> RawCall::Read() {
  v1::AttendResponse response;
  if (!stream_->Read(&response)) return std::nullopt;
  return response;
}

bool RawCall::AwaitAccepted() {
  const std::optional<v1::AttendResponse> response = Read();
  return response.has_value() && response->has_accepted();
}

absl::StatusOr<Answer> RawCall::Collect(const Request& request) {
  Answer answer = request.EmptyAnswer();
  ChunkCoverage coverage;
  coverage.Expect(v1::TENSOR_ID_OUT, answer.out.size());
  if (!answer.lse.empty()) coverage.Expect(v1::TENSOR_ID_LSE, answer.lse.size());
  bool complete = false;
  while (const std::optional<v1::AttendResponse> response = Read()) {
    if (complete) return absl::InternalError("a message after the statistics");
    for (const v1::Chunk& chunk : response->chunks()) {
      const absl::Status status =
          coverage.Accept(chunk.tensor(), chunk.offset(), chunk.data().size());
      if (!status.ok()) return status;
      auto& bytes = chunk.tensor() == v1::TENSOR_ID_OUT ? answer.out : answer.lse;
      std::memcpy(bytes.data() + chunk.offset(), chunk.data().data(), chunk.data().size());
    }
    complete = response->has_statistics();
    if (complete) answer.statistics = response->statistics();
  }
  const absl::Status status = Finish();
  if (!status.ok()) return status;
  if (!complete || !coverage.complete()) return absl::InternalError("OK without a whole answer");
  return answer;
}

absl::Status RawCall::Finish() {
  while (Read().has_value()) {
  }
  finished_ = true;
  const grpc::Status status = stream_->Finish();
  return FromGrpc(status, context_);
}

}  // namespace ringserve::test
