// Attend, as a well-behaved and as a hostile client sees it, against workers that do as the test
// says.
#include "server/attend_call.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "proto/protocol.h"
#include "tests/server/attend_fixture.h"

namespace ringserve {
namespace {

// A bias stays with its queries, and so do gradients: the operator's default cannot make them
// travel.
TEST(Defaults, DoNotMakeARequestOneThatIsRefused) {
  AttendOptions defaults;
  defaults.default_rotate = v1::ROTATE_METHOD_PASS_Q;
  v1::AttentionSpec spec;
  v1::AttentionOptions options;
  ApplyDefaults(defaults, spec, /*backward=*/false, options);
  EXPECT_EQ(options.rotate(), v1::ROTATE_METHOD_PASS_Q);
  options.clear_rotate();
  ApplyDefaults(defaults, spec, /*backward=*/true, options);
  EXPECT_EQ(options.rotate(), v1::ROTATE_METHOD_UNSPECIFIED);
  spec.mutable_bias();
  ApplyDefaults(defaults, spec, /*backward=*/false, options);
  EXPECT_EQ(options.rotate(), v1::ROTATE_METHOD_UNSPECIFIED);
  defaults.default_rotate = v1::ROTATE_METHOD_ALL_GATHER;
  ApplyDefaults(defaults, spec, /*backward=*/false, options);
  EXPECT_EQ(options.rotate(), v1::ROTATE_METHOD_ALL_GATHER);
}

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::ClientCall;
using test::Echo;
using test::kPatience;
using test::kSlowness;
using test::MakeRequest;
using test::RankRun;
using test::Request;
using test::WaitUntil;
using ::testing::HasSubstr;

class AttendTest : public test::AttendFixture {};

void ExpectStatus(const absl::Status& status, absl::StatusCode code, const std::string& words) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

// --- what goes right

TEST_F(AttendTest, RowsComeBackInTheCallersOrderFromAnyNumberOfWorkers) {
  Serve();
  for (int i = 0; i < 3; ++i) AddWorker();
  for (int workers = 1; workers <= 3; ++workers) {
    for (int length : {1, 2, 5, 64, 1'001}) {
      for (v1::Balancer balancer : {v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL}) {
        SCOPED_TRACE(absl::StrCat(workers, " workers, ", length, " rows"));
        Request request = MakeRequest(length, workers);
        request.header.mutable_options()->set_balancer(balancer);
        ExpectServed(request);
      }
    }
  }
}

TEST_F(AttendTest, ManyMegabytesComeBackRight) {
  Serve();
  for (int i = 0; i < 2; ++i) AddWorker();
  Request request = MakeRequest(20'000, 2, 64);
  request.header.mutable_options()->set_balancer(v1::BALANCER_HEAD_TAIL);
  ExpectServed(request);
}

TEST_F(AttendTest, StatisticsCountWhatWasMoved) {
  Serve();
  for (int i = 0; i < 2; ++i) AddWorker();
  const Request request = MakeRequest(100, 2);
  const auto call = Open();
  ASSERT_TRUE(call->SendAll(request));
  ASSERT_TRUE(call->Collect(request).ok());
  const v1::Statistics& statistics = call->statistics;
  EXPECT_EQ(statistics.request_id(), "test-request");
  EXPECT_EQ(statistics.upload_bytes(), request.q.size() + request.k.size() + request.v.size());
  EXPECT_EQ(statistics.download_bytes(), call->out.size() + call->lse.size());
  EXPECT_EQ(statistics.plan().workers(), 2);
  ASSERT_EQ(statistics.ranks_size(), 2);
  EXPECT_EQ(statistics.ranks(1).bytes_sent(), 101u);
  EXPECT_EQ(statistics.ranks(1).tiles(), 7u);
  const double phases = statistics.queued_seconds() + statistics.upload_seconds() +
                        statistics.wait_seconds() + statistics.compute_seconds() +
                        statistics.download_seconds();
  EXPECT_NEAR(phases, statistics.total_seconds(), 1e-6);
  EXPECT_GT(statistics.upload_seconds(), 0);
  EXPECT_GT(statistics.compute_seconds(), 0);
}

TEST_F(AttendTest, AcceptedComesFirstWithThePlanAndAMadeUpRequestId) {
  Serve();
  AddWorker();
  Request request = MakeRequest();
  request.header.clear_request_id();
  const auto call = Open();
  ASSERT_TRUE(call->SendHeader(request.header));
  v1::AttendResponse first;
  ASSERT_TRUE(call->Read(first));
  ASSERT_TRUE(first.has_accepted());
  EXPECT_EQ(first.accepted().request_id().size(), 16u);
  EXPECT_EQ(first.accepted().plan().workers(), 1);
  ASSERT_TRUE(call->SendTensors(request) && call->HalfClose());
  ASSERT_TRUE(call->Collect(request).ok());
  EXPECT_EQ(call->statistics.request_id(), first.accepted().request_id());
}

TEST_F(AttendTest, AClientNeedNotWaitForAcceptedNorSendInOrderOfTensors) {
  Serve();
  AddWorker();
  const Request request = MakeRequest(50);
  const auto call = Open();
  ASSERT_TRUE(call->SendHeader(request.header));
  ASSERT_TRUE(call->SendTensor(v1::TENSOR_ID_V, request.v, 16));
  ASSERT_TRUE(call->SendTensor(v1::TENSOR_ID_Q, request.q, 48));
  ASSERT_TRUE(call->SendTensor(v1::TENSOR_ID_K, request.k));
  ASSERT_TRUE(call->HalfClose());
  ASSERT_TRUE(call->Collect(request).ok());
  ExpectRight(request, *call);
}

TEST_F(AttendTest, WhatAutoMeansIsTheOperatorsToSay) {
  AttendOptions options;
  options.default_balancer = v1::BALANCER_CONTIGUOUS;
  options.default_rotate = v1::ROTATE_METHOD_ALL_GATHER;
  Serve(options);
  for (int i = 0; i < 2; ++i) AddWorker();
  Request request = MakeRequest(64, 2);
  request.header.mutable_spec()->add_masks()->set_causal(true);
  const auto call = Open();
  ASSERT_TRUE(call->SendAll(request));
  ASSERT_TRUE(call->Collect(request).ok());
  EXPECT_EQ(call->statistics.plan().balancer(), v1::BALANCER_CONTIGUOUS);
  EXPECT_EQ(call->statistics.plan().rotate(), v1::ROTATE_METHOD_ALL_GATHER);
}

TEST(Defaults, AreForWhatTheRequestLeavesOpen) {
  AttendOptions defaults;
  defaults.default_balancer = v1::BALANCER_CONTIGUOUS;
  defaults.default_rotate = v1::ROTATE_METHOD_PASS_Q;
  v1::AttentionSpec spec;
  v1::AttentionOptions open, named;
  named.set_balancer(v1::BALANCER_PTRR);
  named.set_rotate(v1::ROTATE_METHOD_ALL_GATHER);
  ApplyDefaults(defaults, spec, /*backward=*/false, open);
  ApplyDefaults(defaults, spec, /*backward=*/false, named);
  EXPECT_EQ(open.balancer(), v1::BALANCER_CONTIGUOUS);
  EXPECT_EQ(open.rotate(), v1::ROTATE_METHOD_PASS_Q);
  EXPECT_EQ(named.balancer(), v1::BALANCER_PTRR);
  EXPECT_EQ(named.rotate(), v1::ROTATE_METHOD_ALL_GATHER);
}

// --- bad headers

struct BadHeader {
  std::string name;
  std::function<void(v1::AttendHeader&)> spoil;
  absl::StatusCode code;
  std::string words;
};

TEST_F(AttendTest, BadHeadersAreRefusedNamingTheField) {
  Serve();
  AddWorker(Echo, /*memory_bytes=*/1 << 20);
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  const std::vector<BadHeader> cases = {
      {"zero dim", [](auto& h) { h.mutable_spec()->set_q_len(0); }, kInvalid, "spec.q_len is 0"},
      {"negative dim", [](auto& h) { h.mutable_spec()->set_batch(-1); }, kInvalid, "spec.batch"},
      {"overflow",
       [&](auto& h) {
         h.mutable_spec()->set_batch(kLargest);
         h.mutable_spec()->set_q_len(kLargest);
       },
       kInvalid, "2^62"},
      {"heads", [](auto& h) { h.mutable_spec()->set_kv_heads(3); }, kInvalid, "spec.q_heads"},
      {"scale", [](auto& h) { h.mutable_spec()->set_scale(NAN); }, kInvalid, "spec.scale"},
      {"dtype", [](auto& h) { h.mutable_spec()->set_dtype(static_cast<v1::DType>(77)); }, kInvalid,
       "spec.dtype is 77"},
      {"balancer",
       [](auto& h) { h.mutable_options()->set_balancer(static_cast<v1::Balancer>(77)); }, kInvalid,
       "options.balancer"},
      {"workers", [](auto& h) { h.mutable_options()->set_workers(-1); }, kInvalid,
       "options.workers"},
      {"request id", [](auto& h) { h.set_request_id("a\nb"); }, kInvalid, "request_id"},
      {"window", [](auto& h) { h.mutable_spec()->add_masks()->mutable_window()->set_left(-1); },
       kInvalid, "window.left is -1"},
      {"softcap", [](auto& h) { h.mutable_spec()->set_softcap(30); },
       absl::StatusCode::kUnimplemented, "softcap"},
      {"a bias above the limit",
       [](auto& h) {
         h.mutable_spec()->set_q_len(1 << 15);
         h.mutable_spec()->set_kv_len((1 << 15) + 1);
         h.mutable_spec()->mutable_bias();
       },
       absl::StatusCode::kFailedPrecondition, "spec.bias takes 4295098368 bytes, limit 4294967296"},
      {"masks",
       [](auto& h) {
         h.mutable_spec()->set_batch(65'537);
         while (h.spec().masks_size() < 65'537) h.mutable_spec()->add_masks();
       },
       kInvalid, "spec.masks is 65537 entries: at most 65536"},
      {"session", [](auto& h) { h.set_session("mine"); }, absl::StatusCode::kUnimplemented,
       "session"},
      {"too large for these workers", [](auto& h) { h.mutable_spec()->set_q_len(1'000'000); },
       absl::StatusCode::kFailedPrecondition, "1048576"},
      {"more workers than there are", [](auto& h) { h.mutable_options()->set_workers(2); },
       absl::StatusCode::kUnavailable, "2"},
  };
  for (const BadHeader& bad : cases) {
    SCOPED_TRACE(bad.name);
    Request request = MakeRequest();
    bad.spoil(request.header);
    const auto call = Open();
    call->SendHeader(request.header);
    ExpectStatus(call->Finish(), bad.code, bad.words);
  }
  ExpectServed(MakeRequest());
}

TEST_F(AttendTest, WithoutWorkersACallIsUnavailable) {
  Serve();
  const auto call = Open();
  call->SendAll(MakeRequest(10, 0));
  EXPECT_EQ(call->Finish().code(), absl::StatusCode::kUnavailable);
}

TEST_F(AttendTest, ADryRunNeedsNoWorkersAndRefusesWhatACallRefuses) {
  Serve();
  const auto plan = [&](const v1::PlanRequest& request, v1::PlanResponse* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    return FromGrpc(stub_->Plan(&context, request, response), context);
  };
  v1::PlanRequest request;
  *request.mutable_spec() = MakeRequest().header.spec();
  request.mutable_options()->set_workers(3);
  v1::PlanResponse response;
  const absl::Status status = plan(request, &response);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(response.plan().workers(), 3);
  v1::PlanRequest future = request;
  future.GetReflection()->MutableUnknownFields(&future)->AddVarint(77, 1);
  ExpectStatus(plan(future, &response), absl::StatusCode::kUnimplemented, "field number 77");
  request.mutable_options()->set_workers(-1);
  ExpectStatus(plan(request, &response), absl::StatusCode::kInvalidArgument, "options.workers");
  request.mutable_spec()->set_batch(65'537);
  while (request.spec().masks_size() < 65'537) request.mutable_spec()->add_masks();
  ExpectStatus(plan(request, &response), absl::StatusCode::kInvalidArgument, "spec.masks is 65537");
}

TEST_F(AttendTest, AHeaderOverItsLimitIsRefusedInOurWords) {
  Serve();
  AddWorker();
  Request request = MakeRequest();
  request.header.set_session(std::string(kMaxHeaderBytes, 's'));
  const auto call = Open();
  call->SendHeader(request.header);
  ExpectStatus(call->Finish(), absl::StatusCode::kInvalidArgument,
               absl::StrCat("bytes: at most ", kMaxHeaderBytes));
}

TEST_F(AttendTest, TheFirstMessageMustBeTheHeaderAlone) {
  Serve();
  AddWorker();
  const auto refused = [&](const v1::AttendRequest& first, const std::string& words) {
    const auto call = Open();
    call->Send(first);
    ExpectStatus(call->Finish(), absl::StatusCode::kInvalidArgument, words);
  };
  v1::AttendRequest chunks;
  chunks.add_chunks()->set_data("data");
  refused(chunks, "`header`");
  refused(v1::AttendRequest(), "`header`");
  *chunks.mutable_header() = MakeRequest().header;
  refused(chunks, "alone");
  v1::AttendRequest future;
  *future.mutable_header() = MakeRequest().header;
  future.GetReflection()->MutableUnknownFields(&future)->AddVarint(77, 1);
  {
    const auto call = Open();
    call->Send(future);
    ExpectStatus(call->Finish(), absl::StatusCode::kUnimplemented, "field number 77");
  }
  const auto call = Open();
  call->HalfClose();
  ExpectStatus(call->Finish(), absl::StatusCode::kInvalidArgument, "`header`");
}

// --- bad uploads

TEST_F(AttendTest, BadUploadsAreRefusedNamingTensorAndOffset) {
  Serve();
  for (int i = 0; i < 2; ++i) AddWorker();
  const Request good = MakeRequest(64, 2);
  const std::vector<std::pair<std::string, std::function<void(ClientCall&)>>> cases = {
      {"a second `header`", [&](ClientCall& call) { call.SendHeader(good.header); }},
      {"without chunks", [](ClientCall& call) { call.Send(v1::AttendRequest()); }},
      {"chunks.tensor is out",
       [](ClientCall& call) { call.SendChunk(v1::TENSOR_ID_OUT, 0, "oooo"); }},
      {"chunks.tensor is tensor 99", [](ClientCall& call) { call.SendChunk(99, 0, "????"); }},
      {"a gap", [](ClientCall& call) { call.SendChunk(v1::TENSOR_ID_K, 4, "kkkk"); }},
      {"an overlap",
       [](ClientCall& call) {
         call.SendChunk(v1::TENSOR_ID_K, 0, "kkkk");
         call.SendChunk(v1::TENSOR_ID_K, 3, "kkkk");
       }},
      {"a gap",
       [&](ClientCall& call) {  // what stood before it in the same message was right
         v1::AttendRequest request;
         for (const uint64_t offset : {0, 5}) {
           v1::Chunk* chunk = request.add_chunks();
           chunk->set_tensor(v1::TENSOR_ID_K);
           chunk->set_offset(offset);
           chunk->set_data("kkkk");
         }
         call.Send(request);
       }},
      {"empty", [](ClientCall& call) { call.SendChunk(v1::TENSOR_ID_K, 0, ""); }},
      {"past the tensor's end",
       [&](ClientCall& call) { call.SendChunk(v1::TENSOR_ID_K, 0, good.k + "k"); }},
      {"at most 4194304 in one message",
       [](ClientCall& call) { call.SendChunk(v1::TENSOR_ID_Q, 0, std::string(5 << 20, 'q')); }},
      {"upload of q ended after 4 of",
       [](ClientCall& call) {
         call.SendChunk(v1::TENSOR_ID_Q, 0, "qqqq");
         call.HalfClose();
       }},
      {"upload of", [](ClientCall& call) { call.HalfClose(); }},
      {"past the tensor's end",
       [&](ClientCall& call) {
         call.SendTensors(good);
         call.SendChunk(v1::TENSOR_ID_V, good.v.size(), "more");
         call.HalfClose();
       }},
      {"a second `header`",
       [&](ClientCall& call) {
         call.SendTensors(good);
         call.SendHeader(good.header);
       }},
  };
  for (const auto& [words, misbehave] : cases) {
    SCOPED_TRACE(words);
    const auto call = Open();
    ASSERT_TRUE(call->SendHeader(good.header));
    misbehave(*call);
    ExpectStatus(call->Finish(), absl::StatusCode::kInvalidArgument, words);
    ExpectNothingLeft();
  }
  ExpectServed(good);
}

// --- patience

TEST_F(AttendTest, AHeaderThatDoesNotComeEndsTheCall) {
  AttendOptions options;
  options.header_patience = milliseconds(150);
  Serve(options);
  const auto call = Open();
  ExpectStatus(call->Finish(), absl::StatusCode::kDeadlineExceeded, "no header within 0.15 s");
}

TEST_F(AttendTest, ASlowUploaderIsCutOffNamingTheRateAndDisturbsNobody) {
  AttendOptions options;
  options.minimum_rate = {.bytes_per_second = 10'000, .window = milliseconds(400 * kSlowness)};
  Serve(options);
  for (int i = 0; i < 2; ++i) AddWorker();
  const Request request = MakeRequest(1'000, 2);
  const auto slow = Open();
  ASSERT_TRUE(slow->SendHeader(request.header));
  ASSERT_TRUE(slow->AwaitAccepted());
  ExpectServed(request);
  uint64_t offset = 0;
  while (slow->SendChunk(v1::TENSOR_ID_Q, offset, "q")) {  // byte for byte
    ++offset;
    std::this_thread::sleep_for(milliseconds(20));
  }
  ExpectStatus(slow->Finish(), absl::StatusCode::kDeadlineExceeded,
               "minimum rate of 10000 bytes per second");
}

TEST_F(AttendTest, ACallThatIsNeverHalfClosedEnds) {
  AttendOptions options;
  options.minimum_rate.window = milliseconds(200);
  Serve(options);
  AddWorker();
  const Request request = MakeRequest();
  const auto call = Open();
  ASSERT_TRUE(call->SendHeader(request.header) && call->SendTensors(request));
  ExpectStatus(call->Finish(), absl::StatusCode::kDeadlineExceeded, "half-closed");
}

TEST_F(AttendTest, TheServersDeadlineCapEndsACallThatWaits) {
  AttendOptions options;
  options.max_deadline = milliseconds(200);
  Serve(options);
  absl::Notification go;
  AddWorker([&](RankRun& run) {
    go.WaitForNotification();
    return grpc::Status(grpc::StatusCode::CANCELLED, "");
  });
  const auto call = Open();
  call->SendAll(MakeRequest());
  ExpectStatus(call->Finish(), absl::StatusCode::kDeadlineExceeded, "longer than 0.2 s");
  go.Notify();
  End();
}

// --- bounds on what is held

// Client messages of a mebibyte that have been taken off its hands, however many it wants to send.
class Uploader {
 public:
  Uploader(ClientCall& call, const Request& request)
      : thread_([this, &call, &request] {
          for (size_t done = 0; done < request.q.size(); done += 1 << 20) {
            if (!call.SendChunk(v1::TENSOR_ID_Q, done, request.q.substr(done, 1 << 20))) return;
            sent_ += 1 << 20;
          }
          call.SendTensor(v1::TENSOR_ID_K, request.k);
          call.SendTensor(v1::TENSOR_ID_V, request.v);
          call.HalfClose();
        }) {}
  ~Uploader() { thread_.join(); }
  uint64_t sent() const { return sent_; }

 private:
  std::atomic<uint64_t> sent_{0};
  std::thread thread_;
};

// Enough for any bound to show: q alone has 40 MiB.
Request LargeRequest(int workers = 1) { return MakeRequest(20'480, workers, 256); }

TEST_F(AttendTest, NothingIsReadFromAClientWhoseJobIsQueued) {
  Serve();
  absl::Notification go;
  AddWorker(
      [&](RankRun& run) {
        go.WaitForNotification();
        return Echo(run);
      },
      uint64_t{250} << 20);
  const Request request = LargeRequest();
  const auto first = Open();
  ASSERT_TRUE(first->SendHeader(request.header));
  ASSERT_TRUE(first->AwaitAccepted());
  const auto queued = Open(milliseconds(1'000 * kSlowness));
  ASSERT_TRUE(queued->SendHeader(request.header));
  ASSERT_TRUE(AwaitUnfinished(1, 1));
  {
    Uploader uploader(*queued, request);
    EXPECT_EQ(queued->Finish().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_LT(uploader.sent(), uint64_t{4} << 20);  // what the transport took, unread
    EXPECT_EQ(calls_->held_bytes(), 0u);
  }
  go.Notify();
  first->Break();
  End();
}

TEST_F(AttendTest, ASlowWorkerHoldsTheUploadBackWithinTheBounds) {
  Serve();
  absl::Notification go;
  AddWorker([&](RankRun& run) {
    if (!run.TakeAssignment()) return grpc::Status::CANCELLED;
    go.WaitForNotification();
    if (!run.TakeUpload() || !run.SayReady() || !run.TakeStart()) return grpc::Status::CANCELLED;
    run.SendRows();
    run.SendDone();
    return grpc::Status::OK;
  });
  const Request request = LargeRequest();
  const auto call = Open();
  ASSERT_TRUE(call->SendHeader(request.header));
  Uploader uploader(*call, request);
  // Two messages wait for the rank, and one more came before that was known.
  EXPECT_TRUE(WaitUntil([&] { return calls_->held_bytes() >= 2 * kChunkBytes; }));
  EXPECT_FALSE(WaitUntil([&] { return uploader.sent() > uint64_t{12} << 20; }, milliseconds(300)));
  EXPECT_LE(calls_->held_bytes(), 3 * kChunkBytes);
  go.Notify();
  EXPECT_TRUE(call->Collect(request).ok());
  ExpectRight(request, *call);
  End();
}

// 4 MB of slopes for four ranks, one of which takes nothing at first: 16 MB are not held for it.
TEST_F(AttendTest, WhatGoesToEveryRankIsHeldBackByTheSlowestWithinTheBounds) {
  Serve();
  absl::Notification go;
  for (int i = 0; i < 4; ++i) {
    AddWorker([&, i](RankRun& run) {
      if (!run.TakeAssignment()) return grpc::Status::CANCELLED;
      if (i == 2) go.WaitForNotification();
      if (!run.TakeUpload() || !run.SayReady() || !run.TakeStart()) return grpc::Status::CANCELLED;
      run.SendRows();
      run.SendDone();
      return grpc::Status::OK;
    });
  }
  Request request = MakeRequest(4, 4, 1);
  v1::AttentionSpec& spec = *request.header.mutable_spec();
  spec.set_q_heads(1'000'000);
  spec.set_q_len(1);  // one rank's: the rows of every head are one run
  spec.set_alibi_slopes(true);
  request.q.assign(ShapeOf(v1::TENSOR_ID_Q, spec).bytes(), 'q');
  const auto call = Open();
  ASSERT_TRUE(call->SendHeader(request.header));
  std::thread uploader([&] {
    call->SendTensor(v1::TENSOR_ID_ALIBI_SLOPES, std::string(4 * spec.q_heads(), 's'));
    call->SendTensors(request);
    call->HalfClose();
  });
  EXPECT_TRUE(WaitUntil([&] { return calls_->held_bytes() >= 2 * kChunkBytes; }));
  EXPECT_FALSE(
      WaitUntil([&] { return calls_->held_bytes() > uint64_t{8} << 20; }, milliseconds(300)));
  go.Notify();
  EXPECT_TRUE(call->Collect(request).ok());
  uploader.join();
  ExpectRight(request, *call);
  End();
}

TEST_F(AttendTest, ASlowClientHoldsTheRanksBackWithinTheBoundsAndDisturbsNobody) {
  Serve();
  std::atomic<int> sent{0};
  for (int i = 0; i < 2; ++i) {
    AddWorker([&](RankRun& run) {
      if (!run.TakeJob() || !run.SendRows() || !run.SendDone()) return grpc::Status::CANCELLED;
      ++sent;
      return grpc::Status::OK;
    });
  }
  const Request request = LargeRequest(2);
  const auto slow = Open();
  ASSERT_TRUE(slow->SendAll(request));
  EXPECT_TRUE(WaitUntil([&] { return calls_->held_bytes() >= uint64_t{5} << 20; }));
  // Its ranks are idle: others have their turn.
  for (int i = 0; i < 3; ++i) ExpectServed(MakeRequest(64, 2));
  EXPECT_EQ(sent, 6);
  EXPECT_LE(calls_->held_bytes(), uint64_t{9} << 20);
  EXPECT_TRUE(slow->Collect(request).ok());
  ExpectRight(request, *slow);
  EXPECT_EQ(sent, 8);
  End();
}

}  // namespace
}  // namespace ringserve
