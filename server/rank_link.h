// One Shard.Run call as the coordinator makes it: raw messages out and in, and its end. Knows
// nothing of what they mean.
#pragma once

#include <memory>

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/client_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace ringserve {

// What happens on the calls of a job. Called on gRPC's threads, never from inside a function of the
// link, and not under its lock.
class RankListener {
 public:
  virtual ~RankListener() = default;
  // The message given to Write is on its way (or the call is broken); Write may be called again.
  virtual void OnRankWritten(int rank) = 0;
  // Answers Read.
  virtual void OnRankMessage(int rank, const grpc::ByteBuffer& message) = 0;
  // The last call: the call is over. `released`: the worker has ended it, and nothing of it is left
  // there; else the status is the transport's, and says nothing about the worker. Comes only while
  // a Read is asked for.
  virtual void OnRankEnded(int rank, const absl::Status& status, bool released) = 0;
};

// Thread safe. Functions do nothing once the call is over.
class RankLink final : private grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  // Opens the call on `channel` and asks for the first message. Lives, and holds the listener,
  // until the call is over.
  static std::shared_ptr<RankLink> Open(const std::shared_ptr<grpc::Channel>& channel, int rank,
                                        std::shared_ptr<RankListener> listener);

  void Write(grpc::ByteBuffer* message);  // takes the bytes; one at a time
  void Read();                            // one at a time

  // Cancels the call.
  void Break() { context_.TryCancel(); }

 private:
  RankLink(int rank, std::shared_ptr<RankListener> listener)
      : rank_(rank), listener_(std::move(listener)) {}

  void OnWriteDone(bool ok) override;
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  const int rank_;
  const std::shared_ptr<RankListener> listener_;
  std::shared_ptr<RankLink> self_;  // until OnDone
  grpc::ClientContext context_;
  grpc::ByteBuffer outgoing_;  // gRPC's while a write is under way
  grpc::ByteBuffer incoming_;  // gRPC's while a read is under way

  absl::Mutex mu_;
  bool over_ ABSL_GUARDED_BY(mu_) = false;  // nothing may be started any more
};

}  // namespace ringserve
