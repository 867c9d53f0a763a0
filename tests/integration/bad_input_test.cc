// Uploads that are wrong, callers that are slow and callers that vanish: each is refused by the
// name of what is wrong with it, and the service is afterwards as it was.
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "tests/integration/held_job.h"
#include "tests/integration/process_facts.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/tcp_relay.h"
#include "tests/support/cluster_fixture.h"

namespace ringserve::test {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

class BadInputTest : public ClusterTest {
 protected:
  static void SetUpTestSuite() {
    ClusterOptions options = HeldClusterOptions();
    options.server_flags = {"--min-rate-bytes-per-second", "1000"};
    Start(options);
  }

  // Whatever was sent: nothing stays reserved, and a right request gets its answer.
  void TearDown() override {
    EXPECT_TRUE(cluster_->AwaitIdle());
    const absl::StatusOr<Answer> answer = SmallRequest().AskOf(
        cluster_->client(), SmallRequest().Named("after", 3), {.max_attempts = 1});
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (answer.ok()) {
      EXPECT_EQ(SmallRequest().WhatIsWrong(*answer), "");
    }
    ClusterTest::TearDown();
  }

  // One batch row, one head, 8 x 4 floats: 128 bytes each of q, k, v.
  static constexpr size_t kTensorBytes = 128;
  static v1::AttendHeader TinyHeader() { return MakeHeader(MakeSpec(8, 8, 1, 4, 4), "tiny", 2); }

  // What the service says to an upload like this after an accepted header.
  static absl::Status StatusOf(const std::function<void(RawCall&)>& upload) {
    RawCall call(NewChannel(cluster_->address()));
    EXPECT_TRUE(call.SendHeader(TinyHeader()));
    EXPECT_TRUE(call.AwaitAccepted());
    upload(call);
    return call.Finish();
  }
};

std::string Zeros(size_t size) { return std::string(size, '\0'); }

void ExpectInvalid(const absl::Status& status, const std::vector<std::string>& words) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  for (const std::string& word : words) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(word));
  }
}

TEST_F(BadInputTest, MoreBytesThanTheHeaderSaid) {
  ExpectInvalid(StatusOf([](RawCall& call) {
                  call.SendChunk(v1::TENSOR_ID_Q, 0, Zeros(kTensorBytes));
                  call.SendChunk(v1::TENSOR_ID_Q, kTensorBytes, Zeros(4));
                }),
                {"q", "128"});
  ExpectInvalid(
      StatusOf([](RawCall& call) { call.SendChunk(v1::TENSOR_ID_K, 0, Zeros(kTensorBytes + 1)); }),
      {"k", "128"});
  // Even when all has been said and the job may be running.
  ExpectInvalid(StatusOf([](RawCall& call) {
                  for (const int tensor : {v1::TENSOR_ID_Q, v1::TENSOR_ID_K, v1::TENSOR_ID_V}) {
                    call.SendChunk(tensor, 0, Zeros(kTensorBytes));
                  }
                  call.SendChunk(v1::TENSOR_ID_V, kTensorBytes, Zeros(1));
                }),
                {"v"});
}

TEST_F(BadInputTest, FewerBytesThanTheHeaderSaid) {
  ExpectInvalid(StatusOf([](RawCall& call) { call.HalfClose(); }), {"128"});
  ExpectInvalid(StatusOf([](RawCall& call) {
                  call.SendChunk(v1::TENSOR_ID_Q, 0, Zeros(kTensorBytes));
                  call.SendChunk(v1::TENSOR_ID_K, 0, Zeros(kTensorBytes));
                  call.SendChunk(v1::TENSOR_ID_V, 0, Zeros(kTensorBytes - 3));
                  call.HalfClose();
                }),
                {"v", "3"});
}

TEST_F(BadInputTest, AGapOrAnOverlap) {
  ExpectInvalid(StatusOf([](RawCall& call) { call.SendChunk(v1::TENSOR_ID_Q, 4, Zeros(8)); }),
                {"q", "4", "0"});
  ExpectInvalid(StatusOf([](RawCall& call) {
                  call.SendChunk(v1::TENSOR_ID_V, 0, Zeros(64));
                  call.SendChunk(v1::TENSOR_ID_V, 60, Zeros(64));
                }),
                {"v", "60", "64"});
  ExpectInvalid(
      StatusOf([](RawCall& call) { call.SendChunk(v1::TENSOR_ID_K, ~uint64_t{0} - 3, Zeros(8)); }),
      {"k"});
}

TEST_F(BadInputTest, ATensorThatIsUnknownOrNotAskedFor) {
  for (const int tensor : {0, 99, -1, int{v1::TENSOR_ID_OUT}, int{v1::TENSOR_ID_LSE},
                           int{v1::TENSOR_ID_BIAS}, int{v1::TENSOR_ID_D_OUT}}) {
    ExpectInvalid(StatusOf([&](RawCall& call) { call.SendChunk(tensor, 0, Zeros(16)); }),
                  {"tensor"});
  }
}

TEST_F(BadInputTest, AnEmptyChunk) {
  ExpectInvalid(StatusOf([](RawCall& call) { call.SendChunk(v1::TENSOR_ID_Q, 0, ""); }), {"q"});
}

TEST_F(BadInputTest, ASecondHeader) {
  ExpectInvalid(StatusOf([](RawCall& call) { call.SendHeader(TinyHeader()); }), {"header"});
  ExpectInvalid(StatusOf([](RawCall& call) {
                  v1::AttendRequest both;
                  *both.mutable_header() = TinyHeader();
                  v1::Chunk& chunk = *both.add_chunks();
                  chunk.set_tensor(v1::TENSOR_ID_Q);
                  chunk.set_data(Zeros(kTensorBytes));
                  call.Send(both);
                }),
                {"header"});
}

TEST_F(BadInputTest, AMessageOverItsLimit) {
  ExpectInvalid(
      StatusOf([](RawCall& call) { call.SendChunk(v1::TENSOR_ID_Q, 0, Zeros((4 << 20) + 1)); }),
      {absl::StrCat(4 << 20)});
}

TEST_F(BadInputTest, AMessageWithoutAnything) {
  ExpectInvalid(StatusOf([](RawCall& call) { call.Send(v1::AttendRequest()); }), {});
}

// Bytes that are no message at all, first and later.
TEST_F(BadInputTest, BytesThatAreNoMessage) {
  for (const bool after_header : {false, true}) {
    for (const std::string& garbage :
         {std::string("\x12\xff\xff\xff\xff\xff"), std::string(100, '\xff'),
          std::string("\x12\x04\x1a\xff\x7f\x00", 6)}) {
      grpc::GenericStub stub(NewChannel(cluster_->address()));
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + kPatience);
      grpc::CompletionQueue queue;
      const auto stream = stub.PrepareCall(&context, "/ringserve.v1.Attention/Attend", &queue);
      const auto done = [&] {
        void* tag = nullptr;
        bool ok = false;
        return queue.Next(&tag, &ok) && ok;
      };
      const auto write = [&](const std::string& bytes) {
        grpc::Slice slice(bytes);
        stream->Write(grpc::ByteBuffer(&slice, 1), nullptr);
        done();
      };
      stream->StartCall(nullptr);
      ASSERT_TRUE(done());
      if (after_header) {
        v1::AttendRequest header;
        *header.mutable_header() = TinyHeader();
        write(header.SerializeAsString());
        grpc::ByteBuffer accepted;
        stream->Read(&accepted, nullptr);
        ASSERT_TRUE(done());
      }
      write(garbage);
      grpc::Status status;
      stream->Finish(&status, nullptr);
      done();
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
      queue.Shutdown();
      done();
    }
  }
}

// All at once: the time that they are given is one for all.
TEST_F(BadInputTest, CallersThatAreTooSlowAreCutOffAndBlockNobody) {
  // Longer than the ten seconds in which the rate is measured, shorter than the deadlines.
  constexpr milliseconds kLimit{20'000 * kSlowness};
  const uint64_t resident = ResidentBytes(cluster_->server().pid());
  const auto begin = std::chrono::steady_clock::now();
  RawCall dribbling(NewChannel(cluster_->address()), 2 * kLimit);
  ASSERT_TRUE(dribbling.SendHeader(TinyHeader()) && dribbling.AwaitAccepted());
  RawCall silent(NewChannel(cluster_->address()), 2 * kLimit);
  ASSERT_TRUE(silent.SendHeader(TinyHeader()) && silent.AwaitAccepted());
  RawCall headless(NewChannel(cluster_->address()), 2 * kLimit);
  HeldJob not_reading(*cluster_, Moment::kDownloading, 2, 0, 2 * kLimit);
  ASSERT_EQ(not_reading.Await(), "");
  // 64 MiB of rows wait for it, with the workers.
  EXPECT_LT(ResidentBytes(cluster_->server().pid()), resident + (32u << 20) + kSanitizerBytes);
  std::thread dribble([&] {
    for (uint64_t offset = 0; dribbling.SendChunk(v1::TENSOR_ID_Q, offset, Zeros(1)); ++offset) {
      std::this_thread::sleep_for(milliseconds(1'000));
    }
  });
  const absl::StatusOr<Answer> answer = SmallRequest().AskOf(
      cluster_->client(), SmallRequest().Named("beside", 3), {.max_attempts = 1});
  EXPECT_TRUE(answer.ok()) << answer.status();
  dribble.join();
  for (RawCall* call : {&dribbling, &silent, &headless}) {
    const absl::Status status = call->Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  }
  EXPECT_TRUE(
      cluster_->server()
          .WaitForLogLine({"state=ended ", absl::StrCat("request=", not_reading.id())}, 0, kLimit)
          .has_value());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kLimit);
  EXPECT_EQ(not_reading.call().Finish().code(), absl::StatusCode::kDeadlineExceeded);
}

class GoneTest : public BadInputTest, public ::testing::WithParamInterface<Moment> {};

TEST_P(GoneTest, ACallerThatVanishesFreesEverything) {
  TcpRelay relay(cluster_->address());
  HeldJob job(*cluster_, GetParam(), 3, 0, 3 * kPatience, relay.address());
  ASSERT_EQ(job.Await(), "");
  EXPECT_TRUE(job.StillThere());
  relay.Cut();
  EXPECT_TRUE(cluster_->server()
                  .WaitForLogLine({"state=ended ", absl::StrCat("request=", job.id())})
                  .has_value());
}

INSTANTIATE_TEST_SUITE_P(Every, GoneTest,
                         ::testing::Values(Moment::kQueued, Moment::kReserved, Moment::kUploading,
                                           Moment::kReady, Moment::kStep1, Moment::kDownloading),
                         [](const auto& info) { return NameOf(info.param); });

TEST(Limits, TheQueueIsBoundedAndNoCallOutlivesTheServersOwnDeadline) {
  ClusterOptions options = HeldClusterOptions();
  options.workers = 2;
  options.server_flags = {"--max-queued-jobs", "1", "--max-deadline-s",
                          absl::StrCat(3 * kSlowness)};
  Cluster cluster(options);
  HeldJob queued(cluster, Moment::kQueued, 2);
  ASSERT_EQ(queued.Await(), "");
  RawCall one_too_many(NewChannel(cluster.address()));
  one_too_many.SendHeader(SmallRequest().Named("too-many", 2));
  const absl::Status full = one_too_many.Finish();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_TRUE(RetryAfter(full).has_value()) << full;

  // Neither this caller nor the one that fills the memory has a deadline that would end it so soon.
  const absl::Status late = queued.call().Finish();
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded) << late;
  EXPECT_TRUE(cluster.AwaitIdle()) << cluster.Logs();

  const absl::StatusOr<Answer> answer =
      SmallRequest().AskOf(cluster.client(), SmallRequest().Named("after", 2));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(SmallRequest().WhatIsWrong(*answer), "");
}

}  // namespace
}  // namespace ringserve::test
