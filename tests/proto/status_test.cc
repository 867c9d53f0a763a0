#include "proto/status.h"

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "proto/protocol.h"
#include "proto/transport.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using testing::EndsWith;
using testing::Optional;

// A server whose every call ends as a test says.
class Ending : public grpc::CallbackGenericService {
 public:
  using End = std::function<grpc::Status(grpc::GenericCallbackServerContext* context)>;

  explicit Ending(End end) : end_(std::move(end)) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    ConfigureServer(builder);
    builder.RegisterCallbackGenericService(this);
    server_ = builder.BuildAndStart();
    channel_ =
        grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port),
                                  grpc::InsecureChannelCredentials(), MakeChannelArguments());
  }

  explicit Ending(const absl::Status& status)
      : Ending([status](grpc::GenericCallbackServerContext* context) {
          SendRetryAfter(status, context);
          return ToGrpc(status);
        }) {}

  // What a caller sees.
  absl::Status Call() {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    const grpc::Slice nothing("");
    grpc::ByteBuffer request(&nothing, 1), response;
    grpc::Status status;
    absl::Notification done;
    stub.UnaryCall(&context, "/test/Call", {}, &request, &response, [&](grpc::Status ended) {
      status = std::move(ended);
      done.Notify();
    });
    done.WaitForNotification();
    return FromGrpc(status, context);
  }

 private:
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    class Reactor : public grpc::ServerGenericBidiReactor {
      void OnDone() override { delete this; }
    };
    auto* reactor = new Reactor;
    reactor->Finish(end_(context));
    return reactor;
  }

  const End end_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST(Status, EveryCodeSurvivesTheRoundTrip) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(static_cast<int>(ToGrpc(status).error_code()), code);
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  }
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
}

TEST(Status, ACodeThatNobodyDefinedIsAnError) {
  const grpc::Status strange(static_cast<grpc::StatusCode>(20), "why");
  EXPECT_FALSE(FromGrpc(strange).ok());
  EXPECT_EQ(FromGrpc(strange).code(), absl::StatusCode::kUnknown);
  EXPECT_FALSE(FromGrpc(ToGrpc(FromGrpc(strange))).ok());
}

TEST(Status, LongMessagesAreCutBetweenCharacters) {
  const std::string fits(2'048, 'x');
  EXPECT_EQ(ToGrpc(absl::InternalError(fits)).error_message(), fits);
  for (int shift = 0; shift < 4; ++shift) {
    std::string message(shift, 'x');
    while (message.size() < 10'000) message += "\xE2\x82\xAC";  // a euro sign
    const std::string sent = ToGrpc(absl::InternalError(message)).error_message();
    EXPECT_LE(sent.size(), 2'048u);
    EXPECT_GT(sent.size(), 2'040u);
    EXPECT_THAT(sent, EndsWith("\xE2\x82\xAC ... (cut)"));
  }
  // Bytes that only continue a character are cut, too.
  EXPECT_EQ(ToGrpc(absl::InternalError(std::string(5'000, '\x80'))).error_message(), " ... (cut)");
}

TEST(Status, CarriesAMarkThatAnotherAttemptIsWorthIt) {
  const absl::Status status = WithRetryAfter(absl::UnavailableError("lost"), milliseconds(250));
  EXPECT_THAT(RetryAfter(status), Optional(milliseconds(250)));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "lost");
  EXPECT_EQ(RetryAfter(absl::UnavailableError("lost")), std::nullopt);
  EXPECT_EQ(RetryAfter(WithRetryAfter(absl::OkStatus(), milliseconds(1))), std::nullopt);
}

TEST(Status, BoundsTheDelayItAsksFor) {
  const auto delay = [](milliseconds asked) {
    return RetryAfter(WithRetryAfter(absl::UnavailableError(""), asked));
  };
  EXPECT_THAT(delay(milliseconds(-5)), Optional(milliseconds(0)));
  EXPECT_THAT(delay(milliseconds::max()), Optional(milliseconds(std::chrono::hours(1))));
}

TEST(Status, TheMarkTravelsToTheCaller) {
  Ending server(WithRetryAfter(absl::ResourceExhaustedError("queue full"), milliseconds(40)));
  const absl::Status status = server.Call();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "queue full");
  EXPECT_THAT(RetryAfter(status), Optional(milliseconds(40)));
}

TEST(Status, AnErrorWithoutTheMarkArrivesWithoutIt) {
  Ending server(absl::UnavailableError("no workers"));
  const absl::Status status = server.Call();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(RetryAfter(status), std::nullopt);
}

TEST(Status, TheLongestMessageArrives) {
  // Bytes that are not printable ASCII take three on the wire.
  std::string message;
  while (message.size() < 10'000) message += "\xE2\x82\xAC";
  const absl::Status status = Ending(absl::InvalidArgumentError(message)).Call();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), EndsWith(" ... (cut)"));
}

// What a hostile server may write into the trailer.
TEST(Status, ReadsAForeignMarkWithCare) {
  const std::pair<const char*, std::optional<milliseconds>> marks[] = {
      {"17", milliseconds(17)},
      {"", std::nullopt},
      {"-1", std::nullopt},
      {"soon", std::nullopt},
      {"99999999999999999999", std::nullopt},
      {"9223372036854775807", milliseconds(std::chrono::hours(1))},
  };
  for (const auto& [mark, delay] : marks) {
    Ending server([mark = mark](grpc::GenericCallbackServerContext* context) {
      context->AddTrailingMetadata(kRetryAfterKey, mark);
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "");
    });
    EXPECT_EQ(RetryAfter(server.Call()), delay) << mark;
  }
}

}  // namespace
}  // namespace ringserve
