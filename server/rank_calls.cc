#include "server/rank_calls.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "proto/wire.h"

namespace ringserve {
namespace {

constexpr uint64_t kBytesPerRank = 2 * kChunkBytes;
constexpr std::chrono::milliseconds kRetryAfterLoss{200};

}  // namespace

absl::StatusOr<std::vector<grpc::ByteBuffer>> EncodeAssignments(const Plan& plan, uint64_t job,
                                                                const std::string& request_id) {
  std::vector<grpc::ByteBuffer> assignments;
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    v1::ShardRequest request;
    *request.mutable_assignment() = AssignmentFor(plan, rank);
    request.mutable_assignment()->set_job(job);
    request.mutable_assignment()->set_request_id(request_id);
    assignments.push_back(EncodeProto(request));
    const size_t bytes = assignments.back().Length();
    if (bytes <= static_cast<size_t>(kReceiveLimitBytes)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("spec.masks make ", bytes, " bytes of work for rank ", rank, " of ",
                     plan.ranks(), ", limit ", kReceiveLimitBytes, ": more workers make fewer"));
  }
  return assignments;
}

void RankCalls::Open(const std::vector<RankPlace>& places,
                     std::vector<grpc::ByteBuffer> assignments, WorkerChannels& channels,
                     const std::shared_ptr<RankListener>& listener) {
  living_ = static_cast<int>(places.size());
  ranks_.resize(places.size());
  for (int i = 0; i < living_; ++i) {
    Rank& rank = ranks_[i];
    rank.worker_id = places[i].worker_id;
    rank.control.push_back(std::move(assignments[i]));
    rank.reading = true;
    rank.link = RankLink::Open(channels.Get(places[i].worker_id, places[i].address), i, listener);
  }
}

bool RankCalls::AllWritten(UploadRouter& upload) const {
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (ranks_[i].writing || !upload.queue(static_cast<int>(i)).empty()) return false;
  }
  return true;
}

bool RankCalls::HasRoom(UploadRouter& upload) const {
  for (size_t i = 0; i < ranks_.size(); ++i) {
    const uint64_t waiting = upload.queue(static_cast<int>(i)).data_bytes();
    if (ranks_[i].in_flight + waiting >= kBytesPerRank) return false;
  }
  return true;
}

void RankCalls::Write(UploadRouter& upload) {
  for (size_t i = 0; i < ranks_.size(); ++i) {
    Rank& rank = ranks_[i];
    if (rank.writing || rank.over) continue;
    ChunkQueue& queue = upload.queue(static_cast<int>(i));
    grpc::ByteBuffer next;
    if (!rank.control.empty()) {
      next.Swap(&rank.control.front());
      rank.control.pop_front();
    } else if (!queue.empty()) {
      OutgoingMessage message = queue.Pop();
      next.Swap(&message.buffer);
      rank.in_flight = message.data_bytes;
    } else {
      continue;
    }
    rank.writing = true;
    rank.link->Write(&next);
  }
}

void RankCalls::Written(int rank) {
  ranks_[rank].writing = false;
  account_.Release(std::exchange(ranks_[rank].in_flight, 0));
}

void RankCalls::Start(const v1::Start& start) {
  started_ = true;
  v1::ShardRequest request;
  *request.mutable_start() = start;
  for (Rank& rank : ranks_) rank.control.push_back(EncodeProto(request));
}

absl::Status RankCalls::Breach(int rank, const std::string& what) const {
  return absl::InternalError(
      absl::StrCat("rank ", rank, " (worker ", ranks_[rank].worker_id, "): ", what));
}

absl::Status RankCalls::Take(int index, const grpc::ByteBuffer& message, DownloadRouter& download) {
  Rank& rank = ranks_[index];
  if (rank.done) return Breach(index, "a message after `done`");
  if (CarriesChunks(message)) {
    if (!started_) return Breach(index, "chunks before `start`");
    const absl::Status status = download.Take(index, message);
    return status.ok() ? status : Breach(index, std::string(status.message()));
  }
  const absl::StatusOr<v1::ShardResponse> response = ParseProto<v1::ShardResponse>(message);
  if (!response.ok()) return Breach(index, std::string(response.status().message()));
  if (response->ready()) {
    if (rank.ready) return Breach(index, "`ready` twice");
    rank.ready = true;
    ++ready_;
    return absl::OkStatus();
  }
  if (!response->has_done() || !started_) {
    return Breach(index, "a message that is neither ready, chunks nor done");
  }
  const absl::Status complete = download.CheckComplete(index);
  if (!complete.ok()) return Breach(index, std::string(complete.message()));
  rank.done = true;
  rank.statistics = response->done();
  return absl::OkStatus();
}

bool RankCalls::BecameIdle(int rank) {
  if (!started_ || ranks_[rank].idle) return false;
  ranks_[rank].idle = true;
  ++idle_;
  return true;
}

void RankCalls::Read(bool discard) {
  uint64_t expected = 0;  // by reads that are under way
  for (const Rank& rank : ranks_) {
    if (rank.reading && rank.idle && !rank.done) expected += kChunkBytes;
  }
  for (Rank& rank : ranks_) {
    if (rank.reading || rank.over) continue;
    if (rank.idle && !rank.done && !discard) {
      if (!account_.MayRead(kChunkBytes, expected)) continue;
      expected += kChunkBytes;
    }
    rank.reading = true;
    rank.link->Read();
  }
}

absl::Status RankCalls::Ended(int index, const absl::Status& status, bool released) {
  Rank& rank = ranks_[index];
  rank.reading = false;
  rank.over = true;
  rank.link.reset();
  if (released || forsaken_) Released(index);
  if (status.ok()) {
    return rank.done ? status : Breach(index, "the call ended with OK before `done`");
  }
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kUnknown:
      // Not by us: a connection that broke, or a worker that ends.
      return WithRetryAfter(
          absl::UnavailableError(absl::StrCat("rank ", index, " (worker ", rank.worker_id,
                                              ") was lost: ", status.message())),
          kRetryAfterLoss);
    default:
      return Breach(index, status.ToString());
  }
}

bool RankCalls::Released(int index) {
  if (std::exchange(ranks_[index].released, true)) return false;
  --living_;
  return true;
}

void RankCalls::Abandon(UploadRouter& upload) {
  account_.Release(upload.Clear());
  if (!started_) {
    BreakAll();
  } else if (!std::exchange(abandoned_, true)) {
    v1::ShardRequest request;
    request.set_cancel(true);
    for (Rank& rank : ranks_) rank.control.push_back(EncodeProto(request));
    Write(upload);
  }
  Read(/*discard=*/true);
}

void RankCalls::BreakLost(const std::set<std::string>& worker_ids) {
  for (Rank& rank : ranks_) {
    if (worker_ids.count(rank.worker_id) == 0) Break(rank);
  }
}

void RankCalls::Forsake() {
  forsaken_ = true;
  BreakAll();
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (ranks_[i].over) Released(static_cast<int>(i));
  }
}

void RankCalls::BreakAll() {
  for (Rank& rank : ranks_) Break(rank);
}

void RankCalls::Break(Rank& rank) {
  if (rank.over) return;
  rank.broken = true;
  rank.link->Break();
}

std::vector<v1::RankStatistics> RankCalls::Statistics() const {
  std::vector<v1::RankStatistics> all;
  for (const Rank& rank : ranks_) all.push_back(rank.statistics);
  return all;
}

}  // namespace ringserve
