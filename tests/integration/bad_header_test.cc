// What strangers send before any worker is needed: headers, first messages, hellos and bytes that
// are wrong. Each is refused by the name of what is wrong with it, and the server answers on.
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "ringserve/v1/cluster.grpc.pb.h"
#include "tests/integration/process_facts.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/tcp_connection.h"
#include "tests/support/cluster_fixture.h"

namespace ringserve::test {
namespace {

using ::testing::HasSubstr;

class BadHeaderTest : public ClusterTest {
 protected:
  static void SetUpTestSuite() { Start({.workers = 0}); }
  void TearDown() override {
    EXPECT_TRUE(cluster_->server().running());
    ClusterTest::TearDown();
  }

  static std::shared_ptr<grpc::Channel> channel() { return NewChannel(cluster_->address()); }

  static v1::AttendHeader GoodHeader() { return MakeHeader(MakeSpec(8, 8, 2, 8, 8), "", 0); }

  static absl::Status StatusOf(const v1::AttendHeader& header) {
    RawCall call(channel());
    call.SendHeader(header);
    return call.Finish();
  }
};

void ExpectStatus(const absl::Status& status, absl::StatusCode code, const std::string& words) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

TEST_F(BadHeaderTest, NamesTheFieldThatIsWrong) {
  using Header = v1::AttendHeader;
  const struct {
    std::function<void(Header&)> change;
    std::string field;
  } kCases[] = {
      {[](Header& h) { h.mutable_spec()->set_batch(0); }, "spec.batch is 0"},
      {[](Header& h) { h.mutable_spec()->set_batch(-1); }, "spec.batch is -1"},
      {[](Header& h) { h.mutable_spec()->set_q_heads(0); }, "spec.q_heads is 0"},
      {[](Header& h) { h.mutable_spec()->set_kv_heads(-3); }, "spec.kv_heads is -3"},
      {[](Header& h) { h.mutable_spec()->set_q_len(0); }, "spec.q_len is 0"},
      {[](Header& h) { h.mutable_spec()->set_q_len(1ll << 31); }, "spec.q_len is 2147483648"},
      {[](Header& h) { h.mutable_spec()->set_kv_len(std::numeric_limits<int64_t>::min()); },
       "spec.kv_len is -9223372036854775808"},
      {[](Header& h) { h.mutable_spec()->set_kv_len(std::numeric_limits<int64_t>::max()); },
       "spec.kv_len"},
      {[](Header& h) { h.mutable_spec()->set_head_dim(0); }, "spec.head_dim is 0"},
      {[](Header& h) { h.mutable_spec()->set_head_dim(1'025); }, "spec.head_dim is 1025"},
      {[](Header& h) { h.mutable_spec()->set_value_dim(-1); }, "spec.value_dim is -1"},
      {[](Header& h) { h.mutable_spec()->set_value_dim(1'025); }, "spec.value_dim is 1025"},
      {[](Header& h) {
         // Each dim is allowed; the product is 2^134.
         v1::AttentionSpec& spec = *h.mutable_spec();
         const int64_t most = (1ll << 31) - 1;
         spec.set_batch(most);
         spec.set_q_heads(most);
         spec.set_kv_heads(most);
         spec.set_q_len(most);
         spec.set_kv_len(most);
         spec.set_head_dim(1'024);
       },
       "larger than 2^62 bytes"},
      {[](Header& h) {
         // The product is 2^64 bytes: 0 where nobody looks.
         v1::AttentionSpec& spec = *h.mutable_spec();
         spec.set_batch(1 << 30);
         spec.set_q_heads(1 << 12);
         spec.set_kv_heads(1);
         spec.set_q_len(1 << 10);
         spec.set_head_dim(1 << 10);
       },
       "larger than 2^62 bytes"},
      {[](Header& h) { h.mutable_spec()->set_kv_heads(3); }, "multiple of spec.kv_heads (3)"},
      {[](Header& h) { h.mutable_spec()->clear_dtype(); }, "spec.dtype"},
      {[](Header& h) { h.mutable_spec()->set_dtype(static_cast<v1::DType>(77)); },
       "spec.dtype is 77"},
      {[](Header& h) { h.mutable_spec()->set_tensor_layout(static_cast<v1::TensorLayout>(9)); },
       "spec.tensor_layout is 9"},
      {[](Header& h) { h.mutable_options()->set_balancer(static_cast<v1::Balancer>(99)); },
       "options.balancer is 99"},
      {[](Header& h) { h.mutable_options()->set_rotate(static_cast<v1::RotateMethod>(-5)); },
       "options.rotate is -5"},
      {[](Header& h) { h.mutable_options()->set_workers(-1); }, "options.workers is -1"},
      {[](Header& h) { h.mutable_options()->set_workers(1'025); }, "options.workers is 1025"},
      {[](Header& h) { h.mutable_spec()->set_scale(std::numeric_limits<double>::quiet_NaN()); },
       "spec.scale is nan"},
      {[](Header& h) { h.mutable_spec()->set_scale(-std::numeric_limits<double>::infinity()); },
       "spec.scale is -inf"},
      {[](Header& h) {
         h.mutable_spec()->set_batch(3);
         h.mutable_spec()->add_masks();
         h.mutable_spec()->add_masks();
       },
       "spec.masks is 2 entries"},
      {[](Header& h) { h.mutable_spec()->add_masks()->set_prefix(4); }, "spec.masks[0].prefix"},
      {[](Header& h) { h.mutable_spec()->add_masks()->set_sinks(4); }, "spec.masks[0].sinks"},
      {[](Header& h) { h.mutable_spec()->add_masks()->set_q_offset(1ll << 41); },
       "spec.masks[0].q_offset"},
      {[](Header& h) { h.mutable_spec()->add_masks()->mutable_window()->set_left(-1); },
       "spec.masks[0].window.left is -1"},
      {[](Header& h) { h.mutable_spec()->add_masks()->mutable_documents()->add_q_lengths(9); },
       "spec.masks[0].documents.q_lengths is 9 in all: at most spec.q_len (8)"},
      {[](Header& h) {
         v1::BlockMask& blocks = *h.mutable_spec()->add_masks()->mutable_blocks();
         blocks.set_q_block(4);
         blocks.set_kv_block(4);
         blocks.set_bits("x");
       },
       "spec.masks[0].blocks.bits is 1 bytes: must be 2"},
      {[](Header& h) {
         v1::Mask& mask = *h.mutable_spec()->add_masks();
         for (int i = 0; i < 2; ++i) {
           mask.add_slices()->set_q_end(2);
           mask.mutable_slices(i)->set_k_end(2);
         }
       },
       "spec.masks[0].slices[1] shows query 0 key 0, as slices[0] does"},
      {[](Header& h) { h.set_request_id(std::string(129, 'x')); }, "request_id is 129 bytes"},
      {[](Header& h) { h.set_request_id("two\nlines"); }, "request_id"},
  };
  for (const auto& [change, field] : kCases) {
    v1::AttendHeader header = GoodHeader();
    change(header);
    ExpectStatus(StatusOf(header), absl::StatusCode::kInvalidArgument, field);
  }
}

TEST_F(BadHeaderTest, ThePlanServiceNamesItToo) {
  v1::PlanRequest request;
  *request.mutable_spec() = GoodHeader().spec();
  request.mutable_spec()->set_q_len(-7);
  ExpectStatus(cluster_->client().Plan(request).status(), absl::StatusCode::kInvalidArgument,
               "spec.q_len is -7");
  request.mutable_spec()->set_q_len(8);
  request.mutable_options()->set_workers(-2);
  ExpectStatus(cluster_->client().Plan(request).status(), absl::StatusCode::kInvalidArgument,
               "options.workers is -2");
}

TEST_F(BadHeaderTest, AFieldFromTheFutureIsNotIgnored) {
  v1::AttendHeader header = GoodHeader();
  header.GetReflection()->MutableUnknownFields(&header)->AddVarint(1'234, 1);
  ExpectStatus(StatusOf(header), absl::StatusCode::kUnimplemented, "1234");
}

TEST_F(BadHeaderTest, AGoodOneFindsNoWorkers) {
  const absl::Status status = StatusOf(GoodHeader());
  ExpectStatus(status, absl::StatusCode::kUnavailable, "no worker");
}

TEST_F(BadHeaderTest, TheFirstMessageMustBeAHeaderAlone) {
  {
    RawCall call(channel());
    call.SendChunk(v1::TENSOR_ID_Q, 0, "12345678");
    ExpectStatus(call.Finish(), absl::StatusCode::kInvalidArgument, "header");
  }
  {
    RawCall call(channel());
    call.Send(v1::AttendRequest());
    ExpectStatus(call.Finish(), absl::StatusCode::kInvalidArgument, "header");
  }
  {
    RawCall call(channel());
    v1::AttendRequest both;
    *both.mutable_header() = GoodHeader();
    v1::Chunk& chunk = *both.add_chunks();
    chunk.set_tensor(v1::TENSOR_ID_Q);
    chunk.set_data("1234");
    call.Send(both);
    ExpectStatus(call.Finish(), absl::StatusCode::kInvalidArgument, "header");
  }
  {
    RawCall call(channel());
    call.HalfClose();
    ExpectStatus(call.Finish(), absl::StatusCode::kInvalidArgument, "header");
  }
}

TEST_F(BadHeaderTest, AHeaderOverItsLimitIsRefusedByOurOwnWords) {
  v1::AttendHeader header = GoodHeader();
  header.set_request_id(std::string(kMaxHeaderBytes, 'x'));
  ExpectStatus(StatusOf(header), absl::StatusCode::kInvalidArgument, absl::StrCat(kMaxHeaderBytes));
  // Beyond what gRPC lets through at all, the words are gRPC's.
  header.set_request_id(std::string(kReceiveLimitBytes, 'x'));
  EXPECT_EQ(StatusOf(header).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(BadHeaderTest, CompressedMessagesAreRefusedUnread) {
  const uint64_t before = ResidentBytes(cluster_->server().pid());
  for (int i = 0; i < 4; ++i) {
    RawCall call(channel(), kPatience, [](grpc::ClientContext& context) {
      context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
    });
    v1::AttendHeader header = GoodHeader();
    header.set_request_id(std::string(32 << 20, 'x'));  // 32 KiB on the wire
    call.SendHeader(header);
    EXPECT_EQ(call.Finish().code(), absl::StatusCode::kUnimplemented);
  }
  EXPECT_LT(ResidentBytes(cluster_->server().pid()), before + (24u << 20) + kSanitizerBytes);
}

TEST_F(BadHeaderTest, GarbageOnThePortDisturbsNobody) {
  const std::string pieces[] = {
      "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
      std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + std::string(500, '\x7f'),
      std::string(100'000, '\xff'),
      std::string(TcpConnection::kHttp2Greeting) + std::string(1'000, '\xee'),
      std::string(TcpConnection::kHttp2Greeting) + "\xff\xff\xff",
  };
  std::vector<TcpConnection> connections;
  for (const std::string& piece : pieces) {
    connections.emplace_back(cluster_->address());
    connections.back().Send(piece);
  }
  EXPECT_TRUE(cluster_->client().GetCluster().ok());
}

TEST_F(BadHeaderTest, AnswersBesideAThousandConnections) {
  ASSERT_GE(RaiseFileLimit(), 2'000u);
  const int files = OpenFiles(cluster_->server().pid());
  {
    std::vector<TcpConnection> connections;
    for (int i = 0; i < 1'000; ++i) {
      connections.emplace_back(cluster_->address());
      ASSERT_TRUE(connections.back().connected()) << i;
      // Half of them speak HTTP/2 and then say nothing, half say nothing at all.
      if (i % 2 == 0) {
        connections.back().Send(std::string(TcpConnection::kHttp2Greeting));
      }
    }
    const std::unique_ptr<Client> client = cluster_->NewClient();
    EXPECT_TRUE(client->GetCluster().ok());
    EXPECT_TRUE(cluster_->client().GetCluster().ok());
  }
  EXPECT_TRUE(WaitUntil([&] { return OpenFiles(cluster_->server().pid()) <= files + 8; }));
  EXPECT_TRUE(cluster_->client().GetCluster().ok());
}

TEST_F(BadHeaderTest, AWorkerThatIntroducesItselfWronglyDoesNotJoin) {
  const auto joining = [&](const std::function<void(v1::WorkerMessage&)>& change) {
    v1::WorkerMessage message;
    v1::Hello& hello = *message.mutable_hello();
    hello.set_protocol_version(kProtocolVersion);
    hello.set_address("127.0.0.1:1");
    hello.set_device("cpu");
    hello.set_threads(1);
    hello.set_memory_bytes(1 << 20);
    hello.set_version("0.1.0");
    change(message);
    const auto stub = v1::Cluster::NewStub(channel());
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    const auto stream = stub->Join(&context);
    stream->Write(message);
    v1::CoordinatorMessage answer;
    while (stream->Read(&answer)) {
      EXPECT_FALSE(answer.has_welcome());
    }
    return FromGrpc(stream->Finish());
  };
  const absl::Status version =
      joining([](v1::WorkerMessage& m) { m.mutable_hello()->set_protocol_version(99); });
  ExpectStatus(version, absl::StatusCode::kFailedPrecondition, "99");
  EXPECT_THAT(std::string(version.message()), HasSubstr(absl::StrCat(kProtocolVersion)));
  ExpectStatus(joining([](v1::WorkerMessage& m) { m.clear_hello(); }),
               absl::StatusCode::kInvalidArgument, "hello");
  ExpectStatus(joining([](v1::WorkerMessage& m) { m.mutable_hello()->clear_address(); }),
               absl::StatusCode::kInvalidArgument, "address");
  ExpectStatus(joining([](v1::WorkerMessage& m) { m.mutable_hello()->set_memory_bytes(0); }),
               absl::StatusCode::kInvalidArgument, "memory_bytes");
  EXPECT_EQ(cluster_->client().GetCluster()->workers_size(), 0);
}

}  // namespace
}  // namespace ringserve::test
