#include "worker/assignment.h"

#include <functional>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/tensor_shape.h"
#include "server/plan/plan.h"

namespace ringserve {
namespace {

using ::testing::HasSubstr;

v1::AttentionSpec CausalSpec() {
  v1::AttentionSpec spec;
  spec.set_batch(2);
  spec.set_q_heads(4);
  spec.set_kv_heads(2);
  spec.set_q_len(21);
  spec.set_kv_len(21);
  spec.set_head_dim(8);
  spec.set_value_dim(4);
  spec.set_dtype(v1::DTYPE_BF16);
  spec.add_masks()->set_causal(true);
  return spec;
}

v1::Assignment ValidAssignment(int rank = 1,
                               v1::RotateMethod rotate = v1::ROTATE_METHOD_ALL_TO_ALL) {
  v1::AttentionOptions options;
  options.set_workers(3);
  options.set_rotate(rotate);
  options.set_balancer(v1::BALANCER_HEAD_TAIL);
  options.set_return_lse(true);
  const absl::StatusOr<Plan> plan =
      MakePlan(CausalSpec(), options, {.workers = 3}, DefaultMeasurements());
  EXPECT_TRUE(plan.ok()) << plan.status();
  v1::Assignment assignment = AssignmentFor(*plan, rank);
  assignment.set_job(7);
  assignment.set_request_id("r7");
  return assignment;
}

TEST(Assignment, OfThePlannerIsTakenForEveryRankAndMethod) {
  for (const v1::RotateMethod rotate :
       {v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_GATHER, v1::ROTATE_METHOD_PASS_Q}) {
    for (int rank = 0; rank < 3; ++rank) {
      const v1::Assignment assignment = ValidAssignment(rank, rotate);
      const absl::StatusOr<RankAssignment> job = ParseAssignment(assignment);
      ASSERT_TRUE(job.ok()) << job.status();
      EXPECT_EQ(job->plan.job, 7u);
      EXPECT_EQ(job->plan.rank, rank);
      EXPECT_EQ(job->plan.steps.size(), static_cast<size_t>(assignment.steps_size()));
      EXPECT_EQ(job->q_rows, std::vector<int64_t>{7});
    }
  }
}

TEST(Assignment, GivesTheBytesOfTheRanksOwnShards) {
  const absl::StatusOr<RankAssignment> job = ParseAssignment(ValidAssignment());
  ASSERT_TRUE(job.ok()) << job.status();
  const uint64_t q_positions = 2 * 4 * 7, kv_positions = 2 * 2 * 7;
  EXPECT_EQ(job->q_bytes, q_positions * 8 * 2);
  EXPECT_EQ(job->k_bytes, kv_positions * 8 * 2);
  EXPECT_EQ(job->v_bytes, kv_positions * 4 * 2);
  EXPECT_EQ(job->out_bytes, q_positions * 4 * 2);
  EXPECT_EQ(job->lse_bytes, q_positions * 4);
  ChunkSequence input = job->ExpectedInput();
  EXPECT_TRUE(input.Accept(v1::TENSOR_ID_V, 0, job->v_bytes).ok());
  EXPECT_TRUE(input.Accept(v1::TENSOR_ID_K, 0, job->k_bytes).ok());
  EXPECT_FALSE(input.complete());
  EXPECT_TRUE(input.Accept(v1::TENSOR_ID_Q, 0, job->q_bytes).ok());
  EXPECT_TRUE(input.complete());
}

// One batch row's queries are not the other's: a bias that they share is there for each.
TEST(Assignment, ExpectsASharedBiasOnceForEachLayout) {
  v1::Assignment assignment = ValidAssignment();
  assignment.add_q_rows(5);
  v1::AttentionSpec& spec = *assignment.mutable_spec();
  spec.mutable_bias()->set_per_head(true);
  spec.set_alibi_slopes(true);
  spec.set_sink_logits(true);
  assignment.set_lse_without_sinks(true);
  assignment.clear_steps();
  assignment.set_peak_bytes(1 << 20);
  const absl::StatusOr<RankAssignment> job = ParseAssignment(assignment);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_TRUE(job->lse_without_sinks);
  const uint64_t row = 4 * 21 * 2;  // of all heads
  EXPECT_EQ(job->bias_blocks, (std::vector<uint64_t>{7 * row, 5 * row}));
  EXPECT_EQ(job->slope_bytes, 16u);
  EXPECT_EQ(job->sink_bytes, 16u);
  ChunkSequence input = job->ExpectedInput();
  EXPECT_TRUE(input.Accept(v1::TENSOR_ID_BIAS, 7 * row, 10).ok());
  EXPECT_TRUE(input.Accept(v1::TENSOR_ID_BIAS, 0, 10).ok());
  EXPECT_TRUE(input.Accept(v1::TENSOR_ID_ALIBI_SLOPES, 0, 16).ok());
  EXPECT_TRUE(input.Accept(v1::TENSOR_ID_SINK_LOGITS, 0, 16).ok());
  spec.mutable_bias()->set_per_batch(true);
  ChunkSequence in_one = ParseAssignment(assignment)->ExpectedInput();
  EXPECT_FALSE(in_one.Accept(v1::TENSOR_ID_BIAS, 7 * row, 10).ok());
  EXPECT_TRUE(in_one.Accept(v1::TENSOR_ID_BIAS, 0, 12 * row).ok());
}

TEST(Assignment, WhoseTilesReachOutsideOfTheBiasIsRefusedByName) {
  const auto with = [](int64_t k_position, int64_t distance) {
    v1::Assignment assignment = ValidAssignment();
    assignment.mutable_spec()->mutable_bias();
    assignment.set_peak_bytes(1 << 20);
    v1::Tile& tile = *assignment.mutable_steps(0)->mutable_tiles(0);
    tile.set_k_position(k_position);
    tile.set_distance(distance);
    return ParseAssignment(assignment).status();
  };
  EXPECT_TRUE(with(14, -20).ok()) << with(14, -20);
  for (const auto& [status, words] :
       {std::pair{with(15, 0), "tiles[0].k_position is 15: must lie in [0, 14]"},
        {with(-1, 0), "tiles[0].k_position is -1"},
        {with(0, int64_t{1} << 50), "tiles[0].distance is 1125899906842624"},
        {with(0, -(int64_t{1} << 50)), "tiles[0].distance is -1125899906842624"}}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  }
}

struct Fault {
  const char* what;
  std::function<void(v1::Assignment&)> plant;
  const char* words;  // that the message must hold
};

TEST(Assignment, ThatContradictsItselfIsRefusedByName) {
  const Fault faults[] = {
      {"no job", [](auto& a) { a.set_job(0); }, "assignment.job is 0"},
      {"no ranks", [](auto& a) { a.set_ranks(0); }, "assignment.ranks is 0"},
      {"too many ranks", [](auto& a) { a.set_ranks(1025); }, "assignment.ranks is 1025"},
      {"rank beyond ranks", [](auto& a) { a.set_rank(3); }, "assignment.rank is 3"},
      {"negative rank", [](auto& a) { a.set_rank(-1); }, "assignment.rank is -1"},
      {"spec", [](auto& a) { a.mutable_spec()->set_q_heads(3); }, "spec.q_heads is 3"},
      {"q rows of nobody", [](auto& a) { a.clear_q_rows(); }, "q_rows has 0 entries"},
      {"q rows for three batch rows", [](auto& a) { a.add_q_rows(1), a.add_q_rows(1); },
       "q_rows has 3 entries"},
      {"more q rows than queries", [](auto& a) { a.set_q_rows(0, 22); }, "q_rows is 22"},
      {"negative q rows", [](auto& a) { a.set_q_rows(0, -1); }, "q_rows is -1"},
      {"a shard too few", [](auto& a) { a.mutable_kv_shards()->RemoveLast(); },
       "kv_shards has 2 entries"},
      {"shards that lack a row", [](auto& a) { a.mutable_kv_shards(0)->set_rows(0, 6); },
       "kv_shards hold 20 rows"},
      {"peak below the shards", [](auto& a) { a.set_peak_bytes(100); }, "peak_bytes is 100"},
  };
  for (const Fault& fault : faults) {
    v1::Assignment assignment = ValidAssignment();
    fault.plant(assignment);
    const absl::Status status = ParseAssignment(assignment).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << fault.what << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(fault.words)) << fault.what;
  }
}

TEST(Assignment, WhoseStepsReachOutsideOfTheShardsIsRefusedByName) {
  const auto step0 = [](v1::Assignment& a) { return a.mutable_steps(0); };
  const auto tile0 = [=](v1::Assignment& a) { return step0(a)->mutable_tiles(0); };
  const Fault faults[] = {
      {"keys of a shard still to come", [&](auto& a) { tile0(a)->set_owner(0); },
       "steps[0].tiles[0].owner is 0"},
      {"keys of no rank", [&](auto& a) { tile0(a)->set_owner(3); }, "tiles[0].owner is 3"},
      {"queries past the shard", [&](auto& a) { tile0(a)->set_q_end(8); }, "tiles[0].q is"},
      {"queries before the shard", [&](auto& a) { tile0(a)->set_q_begin(-1); }, "tiles[0].q is"},
      {"no queries", [&](auto& a) { tile0(a)->set_q_begin(tile0(a)->q_end()); }, "tiles[0].q is"},
      {"keys past the shard", [&](auto& a) { tile0(a)->set_k_end(8); }, "tiles[0].k is"},
      {"keys before the shard", [&](auto& a) { tile0(a)->set_k_begin(-5); }, "tiles[0].k is"},
      {"a batch row that is not there", [&](auto& a) { tile0(a)->set_batch_row(2); },
       "tiles[0].batch_row is 2"},
      {"a send to itself", [&](auto& a) { step0(a)->mutable_sends(0)->set_peer(1); },
       "sends.peer is 1"},
      {"a send to nobody", [&](auto& a) { step0(a)->mutable_sends(0)->set_peer(3); },
       "sends.peer is 3"},
      {"a send of a shard that is not here",
       [&](auto& a) { step0(a)->mutable_sends(0)->set_owner(2); }, "sends.owner is 2"},
      {"two sends to one peer", [&](auto& a) { *step0(a)->add_sends() = step0(a)->sends(0); },
       "names peer 2 twice"},
      {"a receive of what is here", [&](auto& a) { step0(a)->mutable_recvs(0)->set_owner(1); },
       "recvs.owner is 1"},
      {"a receive from nobody", [&](auto& a) { step0(a)->mutable_recvs(0)->set_peer(-1); },
       "recvs.peer is -1"},
  };
  ASSERT_TRUE(ParseAssignment(ValidAssignment()).ok());
  for (const Fault& fault : faults) {
    v1::Assignment assignment = ValidAssignment();
    fault.plant(assignment);
    const absl::Status status = ParseAssignment(assignment).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << fault.what << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(fault.words)) << fault.what;
  }
}

// Rank 1 of 3: its own queries in step 0, those of rank 0 and 2 in steps 1 and 2; their partials go
// in steps 2 and 3, its own come in steps 2 and 3.
TEST(Assignment, WhosePartialsDoNotGoOnceAndWholeIsRefusedByName) {
  const auto step = [](v1::Assignment& a, int index) { return a.mutable_steps(index); };
  const Fault faults[] = {
      {"a query shard too few", [](auto& a) { a.mutable_q_shards()->RemoveLast(); },
       "q_shards has 2 entries"},
      {"query shards that lack a row", [](auto& a) { a.mutable_q_shards(0)->set_rows(0, 6); },
       "q_shards hold 20 rows of batch row 0: must be spec.q_len (21)"},
      {"more rows than queries", [](auto& a) { a.mutable_q_shards(0)->set_rows(0, 22); },
       "q_shards[0].rows is 22"},
      {"another own shard",
       [](auto& a) {
         a.mutable_q_shards(1)->set_rows(0, 6);
         a.mutable_q_shards(0)->set_rows(0, 8);
       },
       "q_shards[1].rows is not q_rows"},
      {"queries past a visitor's shard",
       [&](auto& a) { step(a, 1)->mutable_tiles(0)->set_q_end(8); }, "steps[1].tiles[0].q is"},
      {"keys past its own shard", [&](auto& a) { step(a, 1)->mutable_tiles(0)->set_k_end(8); },
       "steps[1].tiles[0].k is"},
      {"queries that are not here yet",
       [&](auto& a) { step(a, 0)->mutable_tiles(0)->set_owner(0); },
       "steps[0].tiles[0].owner is 0"},
      {"a partial that never goes", [&](auto& a) { step(a, 3)->clear_partial_sends(); },
       "never send it a partial"},
      {"a partial before its tiles", [&](auto& a) { step(a, 0)->add_partial_sends(0); },
       "steps[0].partial_sends names 0: no tile"},
      {"tiles after their partial",
       [&](auto& a) {
         v1::Tile& late = *step(a, 2)->add_tiles();
         late = step(a, 1)->tiles(0);
       },
       "its partial has gone already"},
      {"a partial twice", [&](auto& a) { step(a, 3)->add_partial_sends(0); }, "0 once more"},
      {"a partial to itself", [&](auto& a) { step(a, 3)->add_partial_sends(1); },
       "steps[3].partial_sends is 1"},
      {"a partial to nobody", [&](auto& a) { step(a, 3)->add_partial_sends(3); },
       "steps[3].partial_sends is 3"},
      {"a partial from itself", [&](auto& a) { step(a, 3)->add_partial_recvs(1); },
       "steps[3].partial_recvs is 1"},
      {"a partial from nobody", [&](auto& a) { step(a, 3)->add_partial_recvs(-1); },
       "steps[3].partial_recvs is -1"},
      {"a partial from one rank twice",
       [&](auto& a) { step(a, 3)->add_partial_recvs(step(a, 2)->partial_recvs(0)); },
       "steps[3].partial_recvs names 2 once more"},
      {"a shard and a partial to one peer",
       [&](auto& a) {
         step(a, 2)->add_sends()->set_peer(0);
         step(a, 2)->mutable_sends(0)->set_owner(1);
       },
       "a shard goes there in the same step"},
      {"partials where keys travel", [](auto& a) { a.clear_q_shards(); }, "but no q_shards"},
  };
  ASSERT_TRUE(ParseAssignment(ValidAssignment(1, v1::ROTATE_METHOD_PASS_Q)).ok());
  for (const Fault& fault : faults) {
    v1::Assignment assignment = ValidAssignment(1, v1::ROTATE_METHOD_PASS_Q);
    fault.plant(assignment);
    const absl::Status status = ParseAssignment(assignment).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << fault.what << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(fault.words)) << fault.what;
  }
}

TEST(Assignment, IsBoundToDifferentMembersOfTheEpoch) {
  const absl::StatusOr<RankAssignment> job = ParseAssignment(ValidAssignment());
  ASSERT_TRUE(job.ok());
  const auto bind = [&](std::vector<int> members, int own_index) {
    RankPlan plan = job->plan;
    v1::Start start;
    start.mutable_members()->Assign(members.begin(), members.end());
    const absl::Status status = BindMembers(start, own_index, /*epoch_members=*/5, plan);
    if (status.ok()) {
      EXPECT_EQ(plan.members, members);
    } else {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_TRUE(plan.members.empty());
    }
    return status.ok();
  };
  EXPECT_TRUE(bind({4, 0, 2}, 0));
  EXPECT_FALSE(bind({4, 0, 2}, 4)) << "rank 1 is somebody else";
  EXPECT_FALSE(bind({4, 0}, 0)) << "a rank without a member";
  EXPECT_FALSE(bind({4, 0, 4}, 0)) << "a member twice";
  EXPECT_FALSE(bind({5, 0, 2}, 0)) << "no such member";
  EXPECT_FALSE(bind({-1, 0, 2}, 0)) << "no such member";
}

v1::Assignment BackwardAssignment(int rank, v1::RotateMethod rotate) {
  v1::AttentionOptions options;
  options.set_workers(3);
  options.set_rotate(rotate);
  options.set_balancer(v1::BALANCER_HEAD_TAIL);
  v1::AttentionSpec spec = CausalSpec();
  spec.set_sink_logits(true);
  const absl::StatusOr<Plan> plan = MakePlan(spec, options, {.workers = 3}, DefaultMeasurements(),
                                             {.backward = true, .d_lse = true});
  EXPECT_TRUE(plan.ok()) << plan.status();
  v1::Assignment assignment = AssignmentFor(*plan, rank);
  assignment.set_job(7);
  return assignment;
}

TEST(BackwardAssignment, OfThePlannerBecomesStepsWithGradients) {
  for (const v1::RotateMethod rotate :
       {v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_GATHER}) {
    for (int rank = 0; rank < 3; ++rank) {
      const absl::StatusOr<RankAssignment> job = ParseAssignment(BackwardAssignment(rank, rotate));
      ASSERT_TRUE(job.ok()) << job.status();
      EXPECT_TRUE(job->pass.backward && job->pass.d_lse && !job->return_lse);
      ASSERT_EQ(job->plan.steps.size(), 4u);
      ASSERT_EQ(job->gradients_to.size(), 4u);
      for (int t = 0; t < 3; ++t) {
        for (const Tile& tile : job->plan.steps[t].tiles) EXPECT_EQ(tile.owner, (rank - t + 3) % 3);
      }
      // Head-tail: each rank sees keys of each.
      for (int t = 2; t < 4; ++t) {
        EXPECT_EQ(job->gradients_to[t], (rank - (t - 1) + 3) % 3);
        EXPECT_EQ(job->gradients_from[t], (rank + (t - 1)) % 3);
      }
    }
  }
}

TEST(BackwardAssignment, GivesTheBytesOfWhatComesAndGoes) {
  const absl::StatusOr<RankAssignment> job =
      ParseAssignment(BackwardAssignment(1, v1::ROTATE_METHOD_ALL_TO_ALL));
  ASSERT_TRUE(job.ok()) << job.status();
  const uint64_t q_positions = 2 * 4 * 7, kv_positions = 2 * 2 * 7;
  ChunkSequence input = job->ExpectedInput();
  for (const auto& [tensor, bytes] : {std::pair{v1::TENSOR_ID_Q, q_positions * 8 * 2},
                                      {v1::TENSOR_ID_K, kv_positions * 8 * 2},
                                      {v1::TENSOR_ID_V, kv_positions * 4 * 2},
                                      {v1::TENSOR_ID_OUT, q_positions * 4 * 2},
                                      {v1::TENSOR_ID_LSE, q_positions * 4},
                                      {v1::TENSOR_ID_D_OUT, q_positions * 4 * 2},
                                      {v1::TENSOR_ID_D_LSE, q_positions * 4},
                                      {v1::TENSOR_ID_SINK_LOGITS, uint64_t{16}}}) {
    EXPECT_FALSE(input.complete());
    EXPECT_TRUE(input.Accept(tensor, 0, bytes).ok()) << TensorName(tensor);
  }
  EXPECT_TRUE(input.complete());
  EXPECT_THAT(job->Results(),
              ::testing::ElementsAre(v1::TENSOR_ID_D_Q, v1::TENSOR_ID_D_K, v1::TENSOR_ID_D_V));
  EXPECT_EQ(job->BytesOf(v1::TENSOR_ID_D_K), kv_positions * 8 * 2);
  EXPECT_THAT(ParseAssignment(BackwardAssignment(0, v1::ROTATE_METHOD_ALL_TO_ALL))->Results(),
              ::testing::Contains(v1::TENSOR_ID_D_SINK_LOGITS));
}

TEST(BackwardAssignment, ThatContradictsItselfIsRefusedByName) {
  const Fault faults[] = {
      {"a reader that is no rank", [](auto& a) { a.add_readers(3); }, "rank 3 of 3"},
      {"a reader of itself", [](auto& a) { a.add_readers(1); }, "rank 1 of 3"},
      {"an lse to return", [](auto& a) { a.set_return_lse(true); }, "return_lse with backward"},
      {"readers of the forward pass", [](auto& a) { a.clear_backward(), a.clear_d_lse(); },
       "readers without backward"},
      {"d_lse of the forward pass", [](auto& a) { a.clear_backward(), a.clear_readers(); },
       "d_lse without backward"},
      {"peak below the shards", [](auto& a) { a.set_peak_bytes(3'000); }, "peak_bytes is 3000"},
      {"queries that travel",
       [](auto& a) {
         for (int rank = 0; rank < 3; ++rank) a.add_q_shards()->add_rows(7);
         for (v1::Step& step : *a.mutable_steps()) step.clear_tiles();
       },
       "pass-Q"},
  };
  for (const Fault& fault : faults) {
    v1::Assignment assignment = BackwardAssignment(1, v1::ROTATE_METHOD_ALL_TO_ALL);
    fault.plant(assignment);
    const absl::Status status = ParseAssignment(assignment).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << fault.what << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(fault.words)) << fault.what;
  }
}

}  // namespace
}  // namespace ringserve
