// The rank calls of one job together: what each is to be sent, what it has said, and how all of
// them end. Not thread safe: the request's lock guards it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ringserve/v1/shard.pb.h"
#include "server/byte_budget.h"
#include "server/coordinator.h"
#include "server/download_router.h"
#include "server/plan/plan.h"
#include "server/rank_link.h"
#include "server/upload_router.h"
#include "server/worker_channels.h"

namespace ringserve {

// What each rank of the plan is sent first, by rank. Takes time where the plan is large.
// FAILED_PRECONDITION: one is larger than a worker receives; says the limit.
absl::StatusOr<std::vector<grpc::ByteBuffer>> EncodeAssignments(const Plan& plan, uint64_t job,
                                                                const std::string& request_id);

class RankCalls {
 public:
  // What is held for the ranks is counted in `account`, which outlives this.
  explicit RankCalls(ByteBudget::Account& account) : account_(account) {}

  // Opens one call per rank and sends the assignments. Once.
  void Open(const std::vector<RankPlace>& places, std::vector<grpc::ByteBuffer> assignments,
            WorkerChannels& channels, const std::shared_ptr<RankListener>& listener);

  // Ranks that may still hold something of their workers: their calls are not over, or not known to
  // be over there, too.
  int living() const { return living_; }
  bool AllReady() const { return ready_ == static_cast<int>(ranks_.size()); }
  bool AllIdle() const { return idle_ == static_cast<int>(ranks_.size()); }
  bool AllWritten(UploadRouter& upload) const;

  // Uploads may be taken: no rank has two messages waiting.
  bool HasRoom(UploadRouter& upload) const;

  // Sends whatever may be sent now.
  void Write(UploadRouter& upload);
  void Written(int rank);

  // Every rank is to be sent this, before anything else.
  void Start(const v1::Start& start);

  // What `rank` says. INTERNAL: it breaks the protocol.
  absl::Status Take(int rank, const grpc::ByteBuffer& message, DownloadRouter& download);

  // After the start: true the first time that `rank` has sent or ended anything.
  bool BecameIdle(int rank);

  // Asks for more, from ranks that still compute in any case, from others as far as `account` has
  // room. `discard`: what comes is thrown away.
  void Read(bool discard);
  void ReadDone(int rank) { ranks_[rank].reading = false; }

  // The call of `rank` is over. OK: it ended as it should. UNAVAILABLE, worth another attempt: the
  // worker is lost or leaves. INTERNAL: a bug. Unless `released` the rank stays among the living
  // until Released.
  absl::Status Ended(int rank, const absl::Status& status, bool released);

  // What became of the worker's side of this call is not known.
  bool Astray(int rank) const { return ranks_[rank].over && !ranks_[rank].released; }
  // This call was broken from here.
  bool Broken(int rank) const { return ranks_[rank].broken; }

  // The worker holds nothing of `rank` any more. True the first time.
  bool Released(int rank);

  // Nothing is wanted any more. Before the start the calls are broken; after it they are sent
  // `cancel`, and live until every exchange is done.
  void Abandon(UploadRouter& upload);

  // Breaks the calls to workers that are not among these: no answer will come.
  void BreakLost(const std::set<std::string>& worker_ids);

  // Breaks every call, and waits for no worker's word any more.
  void Forsake();

  std::vector<v1::RankStatistics> Statistics() const;

 private:
  struct Rank {
    std::string worker_id;
    std::shared_ptr<RankLink> link;
    std::deque<grpc::ByteBuffer> control;  // goes before chunks
    uint64_t in_flight = 0;                // bytes of data in the message being written
    bool writing = false, reading = false;
    bool ready = false, idle = false, done = false;
    bool broken = false, over = false, released = false;
    v1::RankStatistics statistics;
  };

  void Break(Rank& rank);
  void BreakAll();
  absl::Status Breach(int rank, const std::string& what) const;

  ByteBudget::Account& account_;
  std::vector<Rank> ranks_;
  int living_ = 0, ready_ = 0, idle_ = 0;
  bool started_ = false, abandoned_ = false, forsaken_ = false;
};

}  // namespace ringserve
