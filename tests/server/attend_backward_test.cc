// AttendBackward through the coordinator: what each rank gets of it, what the caller gets back, and
// what is refused. Its course is Attend's, see attend_call_test.cc and attend_end_test.cc.
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/tensor_shape.h"
#include "tests/server/attend_fixture.h"

namespace ringserve {
namespace {

using test::ClientCall;
using test::Echo;
using test::kPatience;
using test::RankRun;
using ::testing::HasSubstr;

using Tensors = std::map<v1::TensorId, std::string>;

struct BackwardRequest {
  v1::AttendHeader header;
  Tensors tensors;
};

BackwardRequest MakeBackwardRequest(int length, int workers, bool d_lse, bool sinks) {
  BackwardRequest request{test::MakeRequest(length, workers).header, {}};
  request.header.mutable_options()->set_return_lse(false);
  request.header.set_d_lse(d_lse);
  v1::AttentionSpec& spec = *request.header.mutable_spec();
  spec.set_kv_len(length + 3);
  spec.set_value_dim(2);
  spec.set_sink_logits(sinks);
  std::mt19937 random(length);
  for (const v1::TensorId tensor : UploadsOf(spec, {.backward = true, .d_lse = d_lse})) {
    std::string& bytes = request.tensors[tensor];
    bytes.resize(ShapeOf(tensor, spec).bytes());
    for (char& byte : bytes) byte = static_cast<char>(random());
  }
  return request;
}

bool SendTensorsOf(ClientCall& call, const BackwardRequest& request) {
  for (const auto& [tensor, bytes] : request.tensors) {
    if (!call.SendTensor(tensor, bytes)) return false;
  }
  return true;
}

Tensors ReadGradients(ClientCall& call) {
  Tensors gradients;
  v1::AttendResponse response;
  while (call.Read(response)) {
    for (const v1::Chunk& chunk : response.chunks()) {
      std::string& whole = gradients[chunk.tensor()];
      whole.resize(std::max<size_t>(whole.size(), chunk.offset() + chunk.data().size()));
      whole.replace(chunk.offset(), chunk.data().size(), chunk.data());
    }
    if (response.has_statistics()) call.statistics = response.statistics();
  }
  return gradients;
}

class AttendBackwardTest : public test::AttendFixture {
 protected:
  void ExpectGradients(const BackwardRequest& request) {
    const auto call = OpenBackward();
    ASSERT_TRUE(call->SendHeader(request.header));
    ASSERT_TRUE(SendTensorsOf(*call, request) && call->HalfClose());
    const Tensors gradients = ReadGradients(*call);
    const absl::Status status = call->Finish();
    ASSERT_TRUE(status.ok()) << status;
    Tensors expected = {{v1::TENSOR_ID_D_Q, request.tensors.at(v1::TENSOR_ID_Q)},
                        {v1::TENSOR_ID_D_K, request.tensors.at(v1::TENSOR_ID_K)},
                        {v1::TENSOR_ID_D_V, request.tensors.at(v1::TENSOR_ID_V)}};
    if (request.header.spec().sink_logits()) {
      expected[v1::TENSOR_ID_D_SINK_LOGITS] = request.tensors.at(v1::TENSOR_ID_SINK_LOGITS);
    }
    EXPECT_TRUE(gradients == expected);
    uint64_t up = 0, down = 0;
    for (const auto& [tensor, bytes] : request.tensors) up += bytes.size();
    for (const auto& [tensor, bytes] : expected) down += bytes.size();
    EXPECT_EQ(call->statistics.upload_bytes(), up);
    EXPECT_EQ(call->statistics.download_bytes(), down);
  }

  absl::Status ErrorOf(const v1::AttendHeader& header) {
    const auto call = OpenBackward();
    call->SendHeader(header);
    return call->Finish();
  }
};

TEST_F(AttendBackwardTest, EveryGradientComesBackInTheCallersOrderFromAnyNumberOfWorkers) {
  Serve();
  for (int i = 0; i < 3; ++i) AddWorker();
  for (int workers = 1; workers <= 3; ++workers) {
    for (const int length : {1, 5, 64, 1'001}) {
      for (const bool more : {false, true}) {
        SCOPED_TRACE(absl::StrCat(workers, " workers, ", length, " rows, d_lse ", more));
        BackwardRequest request = MakeBackwardRequest(length, workers, more, !more);
        request.header.mutable_options()->set_balancer(v1::BALANCER_HEAD_TAIL);
        ASSERT_NO_FATAL_FAILURE(ExpectGradients(request));
      }
    }
  }
}

TEST_F(AttendBackwardTest, EachRankIsToldThePassAndWhoReadsItsKeys) {
  Serve();
  std::map<int, v1::Assignment> assignments;
  absl::Mutex mu;
  for (int i = 0; i < 3; ++i) {
    AddWorker([&](RankRun& run) {
      if (!run.TakeJob()) return grpc::Status(grpc::StatusCode::CANCELLED, "");
      absl::MutexLock lock(&mu);
      assignments[run.assignment().rank()] = run.assignment();
      return run.SendRows() && run.SendDone() ? grpc::Status::OK
                                              : grpc::Status(grpc::StatusCode::CANCELLED, "");
    });
  }
  BackwardRequest request = MakeBackwardRequest(30, 3, true, false);
  request.header.mutable_options()->set_balancer(v1::BALANCER_CONTIGUOUS);
  request.header.mutable_spec()->add_masks()->set_causal(true);
  ASSERT_NO_FATAL_FAILURE(ExpectGradients(request));
  End();
  ASSERT_EQ(assignments.size(), 3u);
  for (const auto& [rank, assignment] : assignments) {
    EXPECT_TRUE(assignment.backward() && assignment.d_lse());
    std::vector<int> later;
    for (int reader = rank + 1; reader < 3; ++reader) later.push_back(reader);
    EXPECT_THAT(assignment.readers(), ::testing::ElementsAreArray(later));
  }
}

TEST_F(AttendBackwardTest, TheOperatorsRotateMethodIsNotForIt) {
  AttendOptions options;
  options.default_rotate = v1::ROTATE_METHOD_PASS_Q;
  Serve(options);
  for (int i = 0; i < 2; ++i) AddWorker();
  ASSERT_NO_FATAL_FAILURE(ExpectGradients(MakeBackwardRequest(20, 2, false, false)));
}

TEST_F(AttendBackwardTest, BadHeadersAreRefusedNamingTheField) {
  Serve();
  AddWorker();
  const auto refused = [&](const std::function<void(v1::AttendHeader&)>& spoil) {
    v1::AttendHeader header = MakeBackwardRequest(10, 1, true, false).header;
    spoil(header);
    const absl::Status status = ErrorOf(header);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](auto& h) { h.mutable_options()->set_return_lse(true); }),
              HasSubstr("options.return_lse is true"));
  EXPECT_THAT(refused([](auto& h) { h.mutable_options()->set_rotate(v1::ROTATE_METHOD_PASS_Q); }),
              HasSubstr("options.rotate is ROTATE_METHOD_PASS_Q"));
  EXPECT_THAT(refused([](auto& h) { h.mutable_spec()->set_q_len(0); }),
              HasSubstr("spec.q_len is 0"));
  const auto forward = Open();
  forward->SendHeader(MakeBackwardRequest(10, 1, true, false).header);
  EXPECT_THAT(forward->Finish().ToString(), HasSubstr("d_lse is true"));
}

TEST_F(AttendBackwardTest, UploadsThatLackATensorOrHaveOneTooManyAreRefusedNamingIt) {
  Serve();
  for (int i = 0; i < 2; ++i) AddWorker();
  for (const v1::TensorId missing :
       {v1::TENSOR_ID_OUT, v1::TENSOR_ID_LSE, v1::TENSOR_ID_D_OUT, v1::TENSOR_ID_D_LSE}) {
    BackwardRequest request = MakeBackwardRequest(20, 2, true, false);
    request.tensors.erase(missing);
    const auto call = OpenBackward();
    ASSERT_TRUE(call->SendHeader(request.header));
    SendTensorsOf(*call, request);
    call->HalfClose();
    const absl::Status status = call->Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat("upload of ", TensorName(missing), " ended after 0 of")));
    ExpectNothingLeft();
  }
  for (const v1::TensorId more : {v1::TENSOR_ID_D_LSE, v1::TENSOR_ID_D_Q}) {
    const BackwardRequest request = MakeBackwardRequest(20, 2, false, false);
    const auto call = OpenBackward();
    ASSERT_TRUE(call->SendHeader(request.header));
    call->SendChunk(more, 0, "more");
    const absl::Status status = call->Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(TensorName(more)));
  }
}

// A rank that is not asked for them sends gradients of the sink logits.
TEST_F(AttendBackwardTest, WhatARankMayNotAnswerIsABug) {
  Serve();
  for (int i = 0; i < 2; ++i) {
    AddWorker([](RankRun& run) {
      if (run.TakeJob() && run.assignment().rank() == 1) {
        run.SendChunk(v1::TENSOR_ID_D_SINK_LOGITS, 0, "sinklogi");
      }
      return run.SendRows() && run.SendDone() ? grpc::Status::OK
                                              : grpc::Status(grpc::StatusCode::CANCELLED, "");
    });
  }
  const BackwardRequest request = MakeBackwardRequest(20, 2, false, true);
  const auto call = OpenBackward();
  ASSERT_TRUE(call->SendHeader(request.header) && SendTensorsOf(*call, request));
  ASSERT_TRUE(call->HalfClose());
  const absl::Status status = call->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("d_sink_logits"));
}

TEST_F(AttendBackwardTest, ADryRunSaysWhatTheCallWouldTake) {
  Serve();
  const auto plan = [&](const v1::PlanRequest& request, v1::PlanResponse& response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    return FromGrpc(stub_->Plan(&context, request, &response), context);
  };
  v1::PlanRequest request;
  *request.mutable_spec() = MakeBackwardRequest(20'000, 2, false, false).header.spec();
  request.mutable_options()->set_workers(2);
  request.mutable_options()->set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
  v1::PlanResponse forward, backward;
  ASSERT_TRUE(plan(request, forward).ok());
  request.set_backward(true);
  ASSERT_TRUE(plan(request, backward).ok());
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_GT(backward.plan().bytes(rank), forward.plan().bytes(rank));
    EXPECT_GT(backward.plan().peak_bytes(rank), forward.plan().peak_bytes(rank));
  }
  request.mutable_options()->set_return_lse(true);
  EXPECT_THAT(plan(request, backward).ToString(), HasSubstr("options.return_lse is true"));
}

}  // namespace
}  // namespace ringserve
