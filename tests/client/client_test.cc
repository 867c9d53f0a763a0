// The client library against a server that misbehaves in every way the protocol allows it to.
#include "ringserve/client.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "proto/status.h"
#include "tests/client/fake_attention.h"
#include "tests/client/ringctl/scratch_folder.h"
#include "tests/support/wait.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using test::FakeAttention;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;
using Clock = std::chrono::steady_clock;

constexpr std::byte kGuard{0xA5};
constexpr size_t kGuardBytes = 64;

// A request whose out is as large as its q, with guard bytes around the outputs.
struct Case {
  explicit Case(int64_t q_len, int64_t kv_len = 0, bool with_lse = true) {
    v1::AttentionSpec& spec = *header.mutable_spec();
    spec.set_batch(2);
    spec.set_q_heads(2);
    spec.set_kv_heads(2);
    spec.set_q_len(q_len);
    spec.set_kv_len(kv_len > 0 ? kv_len : q_len);
    spec.set_head_dim(16);
    spec.set_dtype(v1::DTYPE_F32);
    header.mutable_options()->set_return_lse(with_lse);
    const TensorBytes bytes = *BytesOf(spec);
    q = Random(bytes.q, 1), k = Random(bytes.k, 2), v = Random(bytes.v, 3);
    out.assign(bytes.out + 2 * kGuardBytes, kGuard);
    lse.assign(bytes.lse + 2 * kGuardBytes, kGuard);
    lse_bytes = with_lse ? bytes.lse : 0;
  }

  static std::vector<std::byte> Random(size_t size, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::byte> bytes(size);
    for (size_t at = 0; at < size; at += sizeof(uint32_t)) {
      const uint32_t word = random() & 0x7F7F7F7F;
      std::memcpy(bytes.data() + at, &word, std::min(size - at, sizeof word));
    }
    return bytes;
  }

  AttendInputs inputs() const { return {q, k, v}; }
  AttendOutputs outputs() {
    return {std::span(out).subspan(kGuardBytes, out.size() - 2 * kGuardBytes),
            std::span(lse).subspan(kGuardBytes, lse_bytes)};
  }
  std::string OutBytes() {
    return std::string(reinterpret_cast<const char*>(outputs().out.data()), outputs().out.size());
  }
  bool GuardsStand() const {
    const auto guard = [](std::byte byte) { return byte == kGuard; };
    return std::all_of(out.begin(), out.begin() + kGuardBytes, guard) &&
           std::all_of(out.end() - kGuardBytes, out.end(), guard) &&
           std::all_of(lse.begin(), lse.begin() + kGuardBytes, guard) &&
           std::all_of(lse.end() - kGuardBytes, lse.end(), guard);
  }

  v1::AttendHeader header;
  std::vector<std::byte> q, k, v, out, lse;
  uint64_t lse_bytes = 0;
};

std::unique_ptr<Client> ClientOf(const std::string& address,
                                 milliseconds connect_timeout = milliseconds(5'000)) {
  return *Client::Connect({.server = address, .connect_timeout = connect_timeout});
}

std::string Text(const std::vector<std::byte>& bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// The error of one call to a server that runs `script`.
absl::Status ErrorOf(FakeAttention::Script script, Case& request, CallOptions options = {}) {
  FakeAttention server(std::move(script));
  const auto client = ClientOf(server.address());
  return client->Attend(request.header, request.inputs(), request.outputs(), options).status();
}

grpc::Status Marked(grpc::ServerContext& context, grpc::StatusCode code, int delay_ms) {
  context.AddTrailingMetadata(kRetryAfterKey, std::to_string(delay_ms));
  return grpc::Status(code, "try again");
}

TEST(Client, SendsEveryByteAndPutsResultsThatComeInAnyOrderInPlace) {
  for (const int64_t length : {1, 7, 1000, 40'000}) {
    Case request(length, length + 3);
    test::Upload seen;
    FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
      seen = test::ReadUpload(stream);
      test::Accept(stream);
      test::SendBackwards(stream, v1::TENSOR_ID_LSE, seen.k.substr(0, request.lse_bytes));
      test::SendBackwards(stream, v1::TENSOR_ID_OUT, seen.q);
      test::SendStatistics(stream);
      return grpc::Status::OK;
    });
    const auto client = ClientOf(server.address());
    const auto result = client->Attend(request.header, request.inputs(), request.outputs());
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->attempts, 1);
    EXPECT_EQ(result->statistics.total_seconds(), 1);
    EXPECT_EQ(seen.header.SerializeAsString(), request.header.SerializeAsString());
    EXPECT_EQ(seen.q, Text(request.q));
    EXPECT_EQ(seen.k, Text(request.k));
    EXPECT_EQ(seen.v, Text(request.v));
    EXPECT_EQ(request.OutBytes(), seen.q);
    EXPECT_EQ(std::memcmp(request.outputs().lse.data(), seen.k.data(), request.lse_bytes), 0);
    EXPECT_TRUE(request.GuardsStand());
  }
}

TEST(Client, ReadsWhileItWrites) {
  // The server answers before it has read: neither side's windows could hold all of it.
  Case request(100'000, 0, false);
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    test::Accept(stream);
    test::SendBackwards(stream, v1::TENSOR_ID_OUT, std::string(request.q.size(), 'x'));
    test::ReadUpload(stream);
    test::SendStatistics(stream);
    return grpc::Status::OK;
  });
  const auto client = ClientOf(server.address());
  const auto result = client->Attend(request.header, request.inputs(), request.outputs());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(request.OutBytes(), std::string(request.q.size(), 'x'));
}

TEST(Client, TakesNoAnswerThatBreaksTheProtocol) {
  using Answer = std::function<void(FakeAttention::Stream&, const std::string& out)>;
  const auto breach = [](const Answer& answer) {
    Case request(100, 0, false);
    const absl::Status status = ErrorOf(
        [&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
          const test::Upload upload = test::ReadUpload(stream);
          answer(stream, upload.q);
          return grpc::Status::OK;
        },
        request);
    EXPECT_TRUE(request.GuardsStand());
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
    return std::string(status.message());
  };
  constexpr int kOut = v1::TENSOR_ID_OUT;
  EXPECT_THAT(breach([](auto& stream, const auto& out) {
                test::Accept(stream);
                test::SendChunk(stream, kOut, 0, out + "x");
                test::SendStatistics(stream);
              }),
              HasSubstr("out"));
  EXPECT_THAT(breach([](auto& stream, const auto& out) {
                test::Accept(stream);
                test::SendChunk(stream, kOut, ~uint64_t{0} - 10, out);
                test::SendStatistics(stream);
              }),
              HasSubstr("out"));
  EXPECT_THAT(breach([](auto& stream, const auto& out) {
                test::Accept(stream);
                test::SendChunk(stream, kOut, 0, out);
                test::SendChunk(stream, kOut, 5, "x");
                test::SendStatistics(stream);
              }),
              HasSubstr("out"));
  EXPECT_THAT(breach([](auto& stream, const auto& out) {
                test::Accept(stream);
                test::SendChunk(stream, kOut, 0, out.substr(1));
                test::SendStatistics(stream);
              }),
              HasSubstr("missing"));
  EXPECT_THAT(breach([](auto& stream, const auto& out) {
                test::Accept(stream);
                test::SendChunk(stream, kOut, 0, out);
                test::SendChunk(stream, v1::TENSOR_ID_LSE, 0, "12345678");
                test::SendStatistics(stream);
              }),
              HasSubstr("lse"));
  EXPECT_THAT(breach([](auto& stream, const auto& out) {
                test::Accept(stream);
                test::SendChunk(stream, 99, 0, out);
              }),
              HasSubstr("99"));
  EXPECT_THAT(breach([](auto& stream, const auto& out) {
                test::SendChunk(stream, kOut, 0, out);
                test::SendStatistics(stream);
              }),
              HasSubstr("before accepted"));
  EXPECT_THAT(breach([](auto& stream, const auto& out) {
                test::Accept(stream);
                test::SendChunk(stream, kOut, 0, out);
              }),
              HasSubstr("no statistics"));
  EXPECT_THAT(breach([](auto& stream, const auto& out) {
                test::Accept(stream);
                test::Accept(stream);
              }),
              HasSubstr("accepted twice"));
  EXPECT_THAT(breach([](auto& stream, const auto& out) {
                test::Accept(stream);
                test::SendStatistics(stream);
                test::SendChunk(stream, kOut, 0, out);
              }),
              HasSubstr("after the statistics"));
  EXPECT_THAT(breach([](auto& stream, const auto& out) { stream.Write(v1::AttendResponse()); }),
              HasSubstr("neither"));
}

TEST(Client, ReportsARefusalThatComesWhileItUploads) {
  Case request(200'000);
  int retries = 0;
  const absl::Status status = ErrorOf(
      [](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
        v1::AttendRequest header;
        stream.Read(&header);
        return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "too large by 5 bytes");
      },
      request, {.on_retry = [&](int, const absl::Status&) { ++retries; }});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("too large by 5 bytes"));
  EXPECT_EQ(retries, 0);
}

TEST(Client, SendsTheSpansAgainUnderANewIdWhenTheServerAsksForIt) {
  Case request(5'000);
  request.header.set_request_id("mine");
  std::vector<std::string> ids;
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext& context,
                           int attempt) {
    if (attempt == 3) {
      return test::Echo(stream, request.lse_bytes);
    }
    test::Accept(stream);
    ids.push_back(test::ReadUpload(stream).header.request_id());
    return Marked(
        context,
        attempt == 1 ? grpc::StatusCode::UNAVAILABLE : grpc::StatusCode::RESOURCE_EXHAUSTED, 10);
  });
  std::vector<int> attempts;
  const auto client = ClientOf(server.address());
  const auto result = client->Attend(
      request.header, request.inputs(), request.outputs(),
      {.on_retry = [&](int attempt, const absl::Status& why) { attempts.push_back(attempt); }});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->attempts, 3);
  EXPECT_EQ(attempts, (std::vector<int>{2, 3}));
  ASSERT_EQ(ids.size(), 2u);
  EXPECT_EQ(ids[0], "mine");
  EXPECT_NE(ids[1], "mine");
  EXPECT_THAT(ids[1], HasSubstr("mine"));
  EXPECT_EQ(request.OutBytes(), Text(request.q));
}

TEST(Client, GivesUpAfterAsManyAttemptsAsItMay) {
  for (const int most : {1, 3}) {
    Case request(10);
    FakeAttention server([](FakeAttention::Stream&, grpc::ServerContext& context, int) {
      return Marked(context, grpc::StatusCode::UNAVAILABLE, 1);
    });
    const auto client = ClientOf(server.address());
    const auto result =
        client->Attend(request.header, request.inputs(), request.outputs(), {.max_attempts = most});
    EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(server.calls(), most);
  }
}

TEST(Client, ReturnsAtOnceWhenThereAreTooFewWorkers) {
  Case request(10);
  FakeAttention server([](FakeAttention::Stream&, grpc::ServerContext&, int) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "options.workers is 3: 2 workers are there");
  });
  const auto client = ClientOf(server.address());
  const auto result = client->Attend(request.header, request.inputs(), request.outputs());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.calls(), 1);
}

TEST(Client, WaitsForAServerThatIsNotReadyForAsLongAsItIsTold) {
  Case request(10);
  const auto unready = [&](FakeAttention::Stream& stream, grpc::ServerContext&, int attempt) {
    return attempt < 8 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "no workers")
                       : test::Echo(stream, request.lse_bytes);
  };
  FakeAttention server(unready);
  const auto client = ClientOf(server.address());
  const auto result = client->Attend(request.header, request.inputs(), request.outputs(),
                                     {.max_attempts = 1, .wait_for_ready = milliseconds(60'000)});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->attempts, 8);

  FakeAttention never([&](FakeAttention::Stream&, grpc::ServerContext&, int) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no workers");
  });
  const auto impatient = ClientOf(never.address())
                             ->Attend(request.header, request.inputs(), request.outputs(),
                                      {.max_attempts = 1, .wait_for_ready = milliseconds(300)});
  EXPECT_EQ(impatient.status().code(), absl::StatusCode::kUnavailable) << impatient.status();
  EXPECT_THAT(impatient.status().message(), HasSubstr("no workers"));
  EXPECT_GT(never.calls(), 1);
}

TEST(Client, WaitsForAServerThatIsNotThereYet) {
  Case request(10);
  const test::ScratchFolder folder;
  const std::string address = "unix:" + folder.Path("server");
  std::unique_ptr<FakeAttention> server;
  const auto start = [&] {
    server =
        std::make_unique<FakeAttention>([&](FakeAttention::Stream& stream, grpc::ServerContext&,
                                            int) { return test::Echo(stream, request.lse_bytes); },
                                        grpc::InsecureServerCredentials(), address);
  };
  const auto client = ClientOf(address);
  const auto result = client->Attend(request.header, request.inputs(), request.outputs(),
                                     {.max_attempts = 1,
                                      .wait_for_ready = milliseconds(60'000),
                                      .on_retry = [&](int attempt, const absl::Status& why) {
                                        EXPECT_EQ(why.code(), absl::StatusCode::kUnavailable)
                                            << why;
                                        if (attempt == 3) start();
                                      }});
  EXPECT_TRUE(result.ok()) << result.status();
}

TEST(Client, SaysWhyAServerCouldNotBeReachedWhenItHasWaitedForIt) {
  Case request(10);
  const auto client = ClientOf("127.0.0.1:1", milliseconds(60'000));
  std::vector<std::string> reasons;
  const auto result = client->Attend(request.header, request.inputs(), request.outputs(),
                                     {.wait_for_ready = milliseconds(1'000),
                                      .on_retry = [&](int attempt, const absl::Status& why) {
                                        reasons.emplace_back(why.message());
                                      }});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable) << result.status();
  reasons.emplace_back(result.status().message());
  EXPECT_THAT(reasons, Each(HasSubstr("Connection refused")));
  EXPECT_THAT(reasons, SizeIs(AllOf(Ge(2), Le(5))));  // a second, at four attempts a second
}

TEST(Client, WaitsForNoReadinessAfterTheLossOfAJobThatWasAccepted) {
  Case request(10);
  FakeAttention server([](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    test::ReadUpload(stream);
    test::Accept(stream);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "worker w1 was lost");
  });
  const auto client = ClientOf(server.address());
  const auto result = client->Attend(
      request.header, request.inputs(), request.outputs(),
      {.deadline = milliseconds(10'000), .max_attempts = 3, .wait_for_ready = milliseconds(9'000)});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable) << result.status();
  EXPECT_EQ(server.calls(), 3);
}

TEST(Client, CountsNoAttemptAsARetryThatWaitedForReadiness) {
  Case request(10);
  FakeAttention server(
      [&](FakeAttention::Stream& stream, grpc::ServerContext& context, int attempt) {
        if (attempt <= 6) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no workers");
        if (attempt == 7) return Marked(context, grpc::StatusCode::RESOURCE_EXHAUSTED, 10);
        return test::Echo(stream, request.lse_bytes);
      });
  const auto client = ClientOf(server.address());
  const auto result = client->Attend(request.header, request.inputs(), request.outputs(),
                                     {.wait_for_ready = milliseconds(60'000)});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->attempts, 8);
}

TEST(Client, WaitsForNoServerThatIsReadyAndRefuses) {
  Case request(10);
  FakeAttention server([](FakeAttention::Stream&, grpc::ServerContext&, int) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too large");
  });
  const auto client = ClientOf(server.address());
  const auto result = client->Attend(request.header, request.inputs(), request.outputs(),
                                     {.wait_for_ready = milliseconds(60'000)});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(server.calls(), 1);
  const auto wrong = client->Attend(request.header, request.inputs(), request.outputs(),
                                    {.wait_for_ready = milliseconds(-1)});
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(wrong.status().message(), HasSubstr("wait_for_ready is -1 ms"));
}

TEST(Client, TriesAgainWhenTheServerVanishesInTheMiddleOfAJob) {
  Case request(10);
  std::atomic<bool> accepted = false;
  auto server = std::make_unique<FakeAttention>(
      [&](FakeAttention::Stream& stream, grpc::ServerContext& context, int) {
        test::Accept(stream);
        accepted = true;
        test::WaitUntil([&] { return context.IsCancelled(); });
        return grpc::Status::CANCELLED;
      });
  const auto client = ClientOf(server->address(), milliseconds(1'000));
  std::thread killer([&] {
    test::WaitUntil([&] { return accepted.load(); });
    server->Stop();
  });
  int retries = 0;
  const auto result =
      client->Attend(request.header, request.inputs(), request.outputs(),
                     {.max_attempts = 2, .on_retry = [&](int, const absl::Status&) { ++retries; }});
  killer.join();
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable) << result.status();
  EXPECT_EQ(retries, 1);
}

// gRPC's own answer to what reaches a server that shuts down.
TEST(Client, TriesAgainWhenTheServerCancelsWhatItsCallerDidNot) {
  Case request(10);
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int attempt) {
    return attempt == 1 ? grpc::Status::CANCELLED : test::Echo(stream, request.lse_bytes);
  });
  const auto client = ClientOf(server.address());
  std::vector<absl::StatusCode> reasons;
  const auto result = client->Attend(
      request.header, request.inputs(), request.outputs(),
      {.on_retry = [&](int, const absl::Status& why) { reasons.push_back(why.code()); }});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->attempts, 2);
  EXPECT_EQ(reasons, std::vector{absl::StatusCode::kUnavailable});
}

TEST(Client, KeepsOneDeadlineForAllAttempts) {
  Case request(10);
  FakeAttention server([](FakeAttention::Stream&, grpc::ServerContext& context, int) {
    return Marked(context, grpc::StatusCode::UNAVAILABLE, 60'000);
  });
  const auto client = ClientOf(server.address());
  const auto start = Clock::now();
  const auto result = client->Attend(request.header, request.inputs(), request.outputs(),
                                     {.deadline = milliseconds(2'000)});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.calls(), 1);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5) * test::kSlowness);
}

TEST(Client, ReadsNoInputAfterADeadlineHasEndedTheCall) {
  Case request(40'000, 0, false);  // 30 MB: more than lies in sockets and windows
  absl::Notification returned;
  std::atomic<bool> poisoned = false;
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    returned.WaitForNotification();  // reads nothing: the client's writes are stuck
    v1::AttendRequest message;
    while (stream.Read(&message)) {
      for (const v1::Chunk& chunk : message.chunks()) {
        if (chunk.data().find('\xEE') != std::string::npos) poisoned = true;
      }
    }
    return grpc::Status::OK;
  });
  const auto client = ClientOf(server.address());
  const auto start = Clock::now();
  const auto result = client->Attend(request.header, request.inputs(), request.outputs(),
                                     {.deadline = milliseconds(300)});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded) << result.status();
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5) * test::kSlowness);
  for (auto* tensor : {&request.q, &request.k, &request.v})
    std::fill(tensor->begin(), tensor->end(), std::byte{0xEE});
  returned.Notify();
  server.Stop();
  EXPECT_FALSE(poisoned);
}

TEST(Client, RefusesTimesThatNoClockHolds) {
  Case request(10);
  for (const milliseconds wait : {milliseconds::max(), milliseconds(0), milliseconds::min()}) {
    const absl::Status deadline =
        ErrorOf([](FakeAttention::Stream&, grpc::ServerContext&,
                   int) { return grpc::Status(grpc::StatusCode::INTERNAL, "was asked"); },
                request, {.deadline = wait});
    EXPECT_EQ(deadline.code(), absl::StatusCode::kInvalidArgument) << deadline;
    EXPECT_THAT(std::string(deadline.message()), HasSubstr("deadline is"));
    const auto client = Client::Connect({.server = "127.0.0.1:1", .connect_timeout = wait});
    EXPECT_EQ(client.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(Client, SaysSoonThatAnAddressIsDead) {
  Case request(10);
  std::string address;
  {
    const FakeAttention server({});
    address = server.address();
  }
  const auto client = ClientOf(address);
  const auto start = Clock::now();
  const auto result = client->Attend(request.header, request.inputs(), request.outputs());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable) << result.status();
  EXPECT_EQ(client->GetCluster().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(4) * test::kSlowness);
}

TEST(Client, WaitsNoLongerThanTheConnectTimeoutForAServerThatIsMute) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof(name);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&name), size), 0);
  ASSERT_EQ(listen(listener, 8), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&name), &size), 0);
  Case request(10);
  const auto client =
      ClientOf("127.0.0.1:" + std::to_string(ntohs(name.sin_port)), milliseconds(400));
  const auto start = Clock::now();
  const auto result = client->Attend(request.header, request.inputs(), request.outputs());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable) << result.status();
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(3) * test::kSlowness);
  close(listener);
}

TEST(Client, SendsNothingWhenASpanDoesNotFitTheSpec) {
  Case request(100);
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    return test::Echo(stream, request.lse_bytes);
  });
  const auto client = ClientOf(server.address());
  const auto refused = [&](AttendInputs inputs, AttendOutputs outputs, const char* what) {
    const absl::Status status = client->Attend(request.header, inputs, outputs).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  };
  AttendInputs inputs = request.inputs();
  AttendOutputs outputs = request.outputs();
  refused({inputs.q.subspan(1), inputs.k, inputs.v}, outputs, "inputs.q");
  refused({inputs.q, inputs.k.subspan(4), inputs.v}, outputs, "inputs.k");
  refused({inputs.q, inputs.k, {}}, outputs, "inputs.v");
  refused(inputs, {outputs.out.subspan(1), outputs.lse}, "outputs.out");
  refused(inputs, {outputs.out, {}}, "outputs.lse");
  refused({outputs.out, inputs.k, inputs.v}, outputs, "overlaps");
  request.header.mutable_spec()->set_kv_heads(3);
  refused(inputs, outputs, "kv_heads");
  EXPECT_EQ(server.calls(), 0);
}

TEST(Client, ServesManyThreadsAtOnce) {
  FakeAttention server([](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    return test::Echo(stream, 0);
  });
  const auto client = ClientOf(server.address());
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < 5; ++i) {
        Case request(500 + 100 * thread + i, 0, false);
        request.q = Case::Random(request.q.size(), 100 * thread + i);
        const auto result = client->Attend(request.header, request.inputs(), request.outputs());
        if (result.ok() && request.OutBytes() == Text(request.q)) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 40);
}

TEST(Client, ReportsProgressUpToTheWhole) {
  Case request(20'000);
  FakeAttention server([&](FakeAttention::Stream& stream, grpc::ServerContext&, int) {
    return test::Echo(stream, request.lse_bytes);
  });
  const auto client = ClientOf(server.address());
  uint64_t last = 0, whole = 0;
  const auto result = client->Attend(request.header, request.inputs(), request.outputs(),
                                     {.progress = [&](uint64_t done, uint64_t total) {
                                       EXPECT_GE(done, last);
                                       last = done, whole = total;
                                     }});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(last, whole);
  EXPECT_EQ(whole, request.q.size() + request.k.size() + request.v.size() +
                       request.outputs().out.size() + request.lse_bytes);
}

TEST(Client, AsksForPlansAndForTheCluster) {
  FakeAttention server({});
  const auto client = ClientOf(server.address());
  v1::PlanRequest request;
  request.mutable_options()->set_workers(7);
  EXPECT_EQ(client->Plan(request)->plan().workers(), 7);
  EXPECT_EQ(client->GetCluster()->version(), "fake");
}

}  // namespace
}  // namespace ringserve
