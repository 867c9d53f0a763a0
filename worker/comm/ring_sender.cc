#include "worker/comm/ring_sender.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "proto/transport.h"
#include "worker/comm/frame.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;

constexpr char kPassMethod[] = "/ringserve.v1.Ring/Pass";

// A peer that refuses connections is dead, unless its machine or network is only just waking.
constexpr milliseconds kConnectPatience{1'000};
constexpr milliseconds kConnectAgain{100};

}  // namespace

// One transfer on its way. Every slice that gRPC holds shares it: when the last one is let go of,
// the transfer is over, and complete if all of it was written.
class RingSender::Outgoing {
 public:
  Outgoing(std::shared_ptr<Transfers> transfers, Transfers::Ticket ticket, const TransferTag& tag,
           SendOp op)
      : transfers_(std::move(transfers)), ticket_(ticket), tag_(tag), op_(std::move(op)) {
    for (const std::span<const std::byte>& part : op_.parts) size_ += part.size();
  }

  ~Outgoing() {
    op_.keep_alive.reset();
    if (written_) transfers_->SendComplete(ticket_, op_.peer);
  }

  static grpc::ByteBuffer NextFrame(const std::shared_ptr<Outgoing>& self) {
    const FrameHeader header{.tag = self->tag_,
                             .offset = self->sent_,
                             .size = self->size_,
                             .bytes = std::min(self->size_ - self->sent_, kChunkBytes)};
    return EncodeFrame(header, self->TakeBytes(), self);
  }

  // The last frame is written. True: it was the transfer's last.
  bool Wrote() {
    transfers_->Sent(op_.peer, sent_ - counted_);
    counted_ = sent_;
    written_ = sent_ == size_;
    return written_;
  }

 private:
  std::vector<std::span<const std::byte>> TakeBytes() {
    std::vector<std::span<const std::byte>> taken;
    uint64_t room = kChunkBytes;
    while (room > 0 && sent_ < size_) {
      const std::span<const std::byte> left = op_.parts[part_].subspan(part_used_);
      const std::span<const std::byte> now = left.first(std::min<uint64_t>(room, left.size()));
      if (!now.empty()) taken.push_back(now);
      room -= now.size();
      sent_ += now.size();
      part_used_ += now.size();
      if (now.size() == left.size()) {
        ++part_;
        part_used_ = 0;
      }
    }
    return taken;
  }

  const std::shared_ptr<Transfers> transfers_;
  const Transfers::Ticket ticket_;
  const TransferTag tag_;
  SendOp op_;
  uint64_t size_ = 0;
  uint64_t sent_ = 0;
  uint64_t counted_ = 0;
  size_t part_ = 0;         // where the next byte comes from
  uint64_t part_used_ = 0;  // of that part
  bool written_ = false;
};

// One try of Ring.Pass. Its messages go through the raw bytes of a two-way call; nothing comes back
// but the end.
class RingSender::Call : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit Call(std::shared_ptr<RingSender> sender) : sender_(std::move(sender)) {}

  void Begin(std::shared_ptr<Call> self, const std::shared_ptr<grpc::Channel>& channel) {
    self_ = std::move(self);
    sender_->errands_->Announce();
    context_.AddMetadata(kRingEpochKey, sender_->route_.epoch);
    context_.AddMetadata(kRingFromKey, absl::StrCat(sender_->route_.from));
    context_.AddMetadata(kRingToKey, absl::StrCat(sender_->route_.to));
    grpc::GenericStub(channel).PrepareBidiStreamingCall(&context_, kPassMethod, grpc::StubOptions(),
                                                        this);
    AddHold();  // for writes that no reaction of gRPC starts
    StartRead(&incoming_);
    StartCall();
  }

  void Write(grpc::ByteBuffer frame) {
    outgoing_ = std::move(frame);
    StartWrite(&outgoing_);
  }

  void Cancel() { context_.TryCancel(); }

  void OnReadInitialMetadataDone(bool ok) override { sender_->Accepted(ok); }

  void OnWriteDone(bool ok) override {
    outgoing_.Clear();
    sender_->Wrote(ok);
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      StartRead(&incoming_);
    } else {
      sender_->HungUp(*this);
    }
  }

  void OnDone(const grpc::Status& status) override {
    sender_->Over(FromGrpc(status, context_));
    // The last hold on the sender may go with the call, there and not here: Stop waits for it.
    const std::shared_ptr<Errands> errands = sender_->errands_;
    errands->Dispose(std::move(self_));
  }

 private:
  const std::shared_ptr<RingSender> sender_;
  std::shared_ptr<Call> self_;  // until OnDone
  grpc::ClientContext context_;
  grpc::ByteBuffer outgoing_, incoming_;
};

RingSender::RingSender(RingRoute route, std::shared_ptr<grpc::ChannelCredentials> credentials,
                       std::shared_ptr<Transfers> transfers, std::shared_ptr<Errands> errands)
    : route_(std::move(route)),
      credentials_(std::move(credentials)),
      transfers_(std::move(transfers)),
      errands_(std::move(errands)) {}

// gRPC 1.51 forgets a connection whose channel ends while it waits for the peer's first settings:
// it would stay open for good.
RingSender::~RingSender() {
  if (channel_ == nullptr) return;
  grpc::Channel* const channel = channel_.get();
  errands_->Release(std::move(channel_),
                    [channel] { return channel->GetState(false) != GRPC_CHANNEL_CONNECTING; });
}

void RingSender::Open() {
  absl::MutexLock lock(&mu_);
  if (dialled_ || closed_) return;
  dialled_ = true;
  DialLocked();
}

void RingSender::Post(Transfers::Ticket ticket, const TransferTag& tag, SendOp op) {
  auto outgoing = std::make_shared<Outgoing>(transfers_, ticket, tag, std::move(op));
  absl::MutexLock lock(&mu_);
  if (closed_) return;
  queue_.push_back(std::move(outgoing));
  WriteLocked();
}

void RingSender::End() {
  std::deque<std::shared_ptr<Outgoing>> unwritten;  // released without the lock
  std::shared_ptr<Call> call;
  {
    absl::MutexLock lock(&mu_);
    closed_ = true;
    unwritten.swap(queue_);
    call = call_;
  }
  if (call != nullptr) call->Cancel();
}

void RingSender::DialLocked() {
  if (channel_ == nullptr) {
    channel_ = grpc::CreateCustomChannel(route_.address, credentials_, MakeChannelArguments());
  }
  hung_up_ = false;
  call_ = std::make_shared<Call>(shared_from_this());
  call_->Begin(call_, channel_);
}

void RingSender::DialAgain() {
  absl::MutexLock lock(&mu_);
  if (!closed_) DialLocked();
}

void RingSender::WriteLocked() {
  if (!accepted_ || hung_up_ || writing_ || closed_ || queue_.empty()) return;
  writing_ = true;
  call_->Write(Outgoing::NextFrame(queue_.front()));
}

void RingSender::Accepted(bool ok) {
  if (!ok) return;  // refused: Over says why
  absl::MutexLock lock(&mu_);
  accepted_ = true;
  WriteLocked();
}

void RingSender::Wrote(bool ok) {
  std::shared_ptr<Outgoing> written;  // released without the lock
  absl::MutexLock lock(&mu_);
  writing_ = false;
  if (!ok || queue_.empty()) return;  // broken, or ended meanwhile
  if (queue_.front()->Wrote()) {
    written = std::move(queue_.front());
    queue_.pop_front();
  }
  WriteLocked();
}

void RingSender::HungUp(Call& call) {
  {
    absl::MutexLock lock(&mu_);
    hung_up_ = true;
  }
  call.RemoveHold();
}

void RingSender::Over(const absl::Status& status) {
  {
    absl::MutexLock lock(&mu_);
    call_.reset();
    if (!accepted_ && !closed_) {
      std::optional<milliseconds> again = RetryAfter(status);
      const auto now = Errands::Clock::now();
      if (!again.has_value() && absl::IsUnavailable(status)) {
        if (first_refusal_ == Errands::Clock::time_point()) first_refusal_ = now;
        if (now - first_refusal_ < kConnectPatience) again = kConnectAgain;
      }
      if (again.has_value()) {
        errands_->Run(*again, [self = shared_from_this()] { self->DialAgain(); });
        return;
      }
    }
    closed_ = true;
  }
  // What contradicts a posted receive is a bug of one of the two, and not the network's fault.
  const std::string what = absl::StrCat(" ", route_.name, ": ", status.ToString());
  transfers_->Lose(route_.to, absl::IsInvalidArgument(status)
                                  ? absl::InternalError(absl::StrCat("refused by", what))
                                  : absl::UnavailableError(absl::StrCat("lost", what)));
}

}  // namespace ringserve
