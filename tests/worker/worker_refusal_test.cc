// A coordinator that errs: the worker refuses what is wrong, says what, and serves on.
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/job.h"

namespace ringserve::test {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;

v1::AttentionOptions Over(int workers) {
  v1::AttentionOptions options;
  options.set_workers(workers);
  options.set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
  return options;
}

class WorkerRefusal : public ::testing::Test {
 protected:
  ~WorkerRefusal() override { EXPECT_EQ(job_.RunOn(cluster_), "") << "does not serve any more"; }

  v1::Assignment Assignment(int rank = 0) const {
    v1::Assignment assignment = AssignmentFor(job_.plan(), rank);
    assignment.set_job(7);
    return assignment;
  }

  FakeCluster cluster_{2};
  const Job job_{cluster_, MakeSpec(v1::DTYPE_F32, 2, 1, 64, 32, false), Over(2), 1};
  const Tensors tensors_ = job_.Fresh();
};

TEST_F(WorkerRefusal, OfMalformedAssignmentsNamesTheField) {
  const std::pair<const char*, std::function<void(v1::Assignment&)>> wrong[] = {
      {"job", [](auto& a) { a.set_job(0); }},
      {"rank", [](auto& a) { a.set_rank(2); }},
      {"rank", [](auto& a) { a.set_rank(-1); }},
      {"ranks", [](auto& a) { a.set_ranks(0); }},
      {"kv_shards", [](auto& a) { a.set_ranks(3); }},
      {"kv_shards", [](auto& a) { a.mutable_kv_shards(1)->set_rows(0, 1); }},
      {"kv_shards[0].rows", [](auto& a) { a.mutable_kv_shards(0)->set_rows(0, -1); }},
      {"q_rows", [](auto& a) { a.set_q_rows(0, 65); }},
      {"q_rows", [](auto& a) { a.clear_q_rows(); }},
      {"head_dim", [](auto& a) { a.mutable_spec()->set_head_dim(0); }},
      {"head_dim", [](auto& a) { a.mutable_spec()->set_head_dim(int64_t{1} << 60); }},
      {"dtype", [](auto& a) { a.mutable_spec()->set_dtype(static_cast<v1::DType>(99)); }},
      {"peak_bytes", [](auto& a) { a.set_peak_bytes(1); }},
      {"steps[0].sends.peer", [](auto& a) { a.mutable_steps(0)->mutable_sends(0)->set_peer(0); }},
      {"steps[0].sends.owner", [](auto& a) { a.mutable_steps(0)->mutable_sends(0)->set_owner(1); }},
      {"steps[0].recvs.owner", [](auto& a) { a.mutable_steps(0)->mutable_recvs(0)->set_owner(0); }},
      {"steps[0].tiles[0].owner",
       [](auto& a) { a.mutable_steps(0)->mutable_tiles(0)->set_owner(1); }},
      {"steps[0].tiles[0].q", [](auto& a) { a.mutable_steps(0)->mutable_tiles(0)->set_q_end(65); }},
      {"steps[0].tiles[0].k",
       [](auto& a) { a.mutable_steps(0)->mutable_tiles(0)->set_k_begin(-1); }}};
  for (const auto& [field, change] : wrong) {
    v1::Assignment assignment = Assignment();
    change(assignment);
    RankCall call(cluster_.stub(0), assignment);
    call.Assign();
    const absl::Status status = call.Finish();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << field << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  }
}

TEST_F(WorkerRefusal, OfMessagesOutOfTurn) {
  const std::function<void(RankCall&)> wrong[] = {
      [](RankCall& call) {
        call.Start("e1", {0, 1});
      },  // before the assignment
      [](RankCall& call) { call.Upload(v1::TENSOR_ID_Q, "bytes"); },
      [](RankCall& call) { call.Send(v1::ShardRequest()); },
      [](RankCall& call) { call.Assign() && call.Assign(); },
      [](RankCall& call) {
        call.Assign() && call.Start("e1", {0, 1});
      },  // before the upload
      [&](RankCall& call) {
        call.Assign() && call.UploadShards(job_.plan(), tensors_) && call.AwaitReady() &&
            call.Upload(v1::TENSOR_ID_Q, "more");
      }};
  for (const auto& err : wrong) {
    RankCall call(cluster_.stub(0), Assignment());
    err(call);
    EXPECT_EQ(call.Finish().code(), StatusCode::kInvalidArgument);
  }
}

TEST_F(WorkerRefusal, OfBytesThatDoNotFitTheShard) {
  const auto chunk = [](v1::TensorId tensor, uint64_t offset, size_t size) {
    v1::ShardRequest request;
    v1::Chunk* chunk = request.add_chunks();
    chunk->set_tensor(tensor);
    chunk->set_offset(offset);
    chunk->set_data(std::string(size, 'x'));
    return request;
  };
  const v1::ShardRequest wrong[] = {
      chunk(v1::TENSOR_ID_Q, 1, 10),              // a gap
      chunk(v1::TENSOR_ID_Q, 0, 1 << 20),         // past the end
      chunk(v1::TENSOR_ID_Q, UINT64_MAX - 3, 8),  // an offset that overflows
      chunk(v1::TENSOR_ID_OUT, 0, 10),            // not an input
      chunk(static_cast<v1::TensorId>(77), 0, 10),
      chunk(v1::TENSOR_ID_Q, 0, 0)};
  for (const v1::ShardRequest& request : wrong) {
    RankCall call(cluster_.stub(0), Assignment());
    ASSERT_TRUE(call.Assign());
    call.Send(request);
    const absl::Status status = call.Finish();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << request.ShortDebugString();
  }
}

TEST_F(WorkerRefusal, OfAStartThatBindsRanksWrongly) {
  const std::pair<std::vector<int>, StatusCode> wrong[] = {
      {{0}, StatusCode::kInvalidArgument},    {{0, 1, 2}, StatusCode::kInvalidArgument},
      {{1, 0}, StatusCode::kInvalidArgument},  // this worker is member 0
      {{0, 0}, StatusCode::kInvalidArgument}, {{0, 2}, StatusCode::kInvalidArgument},
      {{0, -1}, StatusCode::kInvalidArgument}};
  for (const auto& [members, code] : wrong) {
    RankCall call(cluster_.stub(0), Assignment());
    ASSERT_TRUE(call.Assign() && call.UploadShards(job_.plan(), tensors_) && call.AwaitReady());
    call.Start("e1", members);
    EXPECT_EQ(call.Finish().code(), code);
  }
  RankCall call(cluster_.stub(0), Assignment());
  ASSERT_TRUE(call.Assign() && call.UploadShards(job_.plan(), tensors_) && call.AwaitReady());
  call.Start("no such epoch", {0, 1});
  EXPECT_EQ(call.Finish().code(), StatusCode::kUnavailable);
}

// Two ranks that were told different things: the exchange finds out, nobody gets a wrong answer.
TEST_F(WorkerRefusal, OfPlansThatDoNotMatch) {
  HeldCalls calls(cluster_, job_, {0, 1});
  // Rank 1 comes from another job than rank 0.
  HeldCalls others(cluster_, job_, {0, 1});
  calls.rank(0).Start("e1", {0, 1});
  others.rank(1).Start("e1", {0, 1});
  Tensors tensors = job_.Fresh();
  const absl::Status one = calls.rank(0).Collect(job_.plan(), tensors);
  const absl::Status other = others.rank(1).Collect(job_.plan(), tensors);
  EXPECT_EQ(one.code(), StatusCode::kUnavailable) << one;
  EXPECT_EQ(other.code(), StatusCode::kUnavailable) << other;
  EXPECT_THAT(absl::StrCat(std::string(one.message()), std::string(other.message())),
              HasSubstr("INTERNAL"));
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(cluster_.member(i).Await([](const Member::Seen& seen) {
      for (const auto& message : seen.messages) {
        if (message.epoch_broken() == "e1") return true;
      }
      return false;
    }));
  }
  ASSERT_TRUE(cluster_.NextEpoch("e2"));
}

}  // namespace
}  // namespace ringserve::test
