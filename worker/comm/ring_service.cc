#include "worker/comm/ring_service.h"

#include <chrono>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/protocol.h"
#include "proto/status.h"

namespace ringserve {
namespace {

// Members hear of a new epoch within milliseconds of each other.
constexpr std::chrono::milliseconds kDialAgain{20};

// One call of Ring.Pass. Lives until gRPC is done with it.
class PassCall : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  explicit PassCall(std::shared_ptr<RingReceiver> receiver) : receiver_(std::move(receiver)) {}

  void Begin() {
    StartSendInitialMetadata();  // tells the sender that it may begin
    const absl::Status status = receiver_->Attach(this);
    if (status.ok()) return;
    receiver_.reset();
    Finish(ToGrpc(status));
  }

  void OnReadDone(bool ok) override { receiver_->OnRead(ok); }
  void OnCancel() override {
    if (receiver_ != nullptr) receiver_->OnBroken();
  }
  void OnDone() override { delete this; }

 private:
  std::shared_ptr<RingReceiver> receiver_;
};

class RefusedCall : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  explicit RefusedCall(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

absl::StatusOr<std::string> Metadata(const grpc::CallbackServerContext& context, const char* key) {
  const auto& all = context.client_metadata();
  const auto found = all.find(key);
  if (found == all.end()) return absl::InvalidArgumentError(absl::StrCat(key, " is missing"));
  return std::string(found->second.data(), found->second.size());
}

absl::StatusOr<int> MemberIn(const grpc::CallbackServerContext& context, const char* key) {
  const absl::StatusOr<std::string> text = Metadata(context, key);
  if (!text.ok()) return text.status();
  int member = 0;
  if (!absl::SimpleAtoi(*text, &member)) {
    return absl::InvalidArgumentError(absl::StrCat(key, " is no member's index"));
  }
  return member;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RingService>> RingService::Make(const TlsFiles& tls) {
  auto credentials = MakeChannelCredentials(tls);
  if (!credentials.ok()) return credentials.status();
  return std::unique_ptr<RingService>(new RingService(tls, *std::move(credentials)));
}

RingService::~RingService() { errands_->Stop(); }

std::shared_ptr<Communicator> RingService::Build(const v1::Epoch& epoch) {
  std::shared_ptr<GrpcCommunicator> built = GrpcCommunicator::Make(epoch, credentials_, errands_);
  absl::MutexLock lock(&mu_);
  std::erase_if(epochs_, [](const auto& entry) { return entry.second.expired(); });
  epochs_[epoch.id()] = built;
  return built;
}

grpc::ServerReadReactor<grpc::ByteBuffer>* RingService::Pass(grpc::CallbackServerContext* context,
                                                             grpc::ByteBuffer* response) {
  absl::StatusOr<std::shared_ptr<RingReceiver>> receiver = Find(*context);
  if (!receiver.ok()) {
    SendRetryAfter(receiver.status(), context);
    return new RefusedCall(receiver.status());
  }
  auto* call = new PassCall(*std::move(receiver));
  call->Begin();
  return call;
}

absl::StatusOr<std::shared_ptr<RingReceiver>> RingService::Find(
    const grpc::CallbackServerContext& context) {
  if (!PeerIsTrusted(context, tls_)) {
    return absl::UnauthenticatedError("Ring.Pass demands a client certificate");
  }
  const absl::StatusOr<std::string> epoch = Metadata(context, kRingEpochKey);
  if (!epoch.ok()) return epoch.status();
  const absl::StatusOr<int> from = MemberIn(context, kRingFromKey);
  if (!from.ok()) return from.status();
  const absl::StatusOr<int> to = MemberIn(context, kRingToKey);
  if (!to.ok()) return to.status();
  std::shared_ptr<GrpcCommunicator> communicator;  // may be the last owner: released without lock
  {
    absl::MutexLock lock(&mu_);
    const auto found = epochs_.find(*epoch);
    if (found != epochs_.end()) communicator = found->second.lock();
  }
  if (communicator == nullptr) {
    return WithRetryAfter(absl::UnavailableError("this worker is no member of that epoch"),
                          kDialAgain);
  }
  return communicator->ReceiverFor(*from, *to);
}

}  // namespace ringserve
