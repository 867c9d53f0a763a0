#include "worker/assignment.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"
#include "proto/tensor_shape.h"
#include "proto/validate.h"

namespace ringserve {
namespace {

constexpr int64_t kMostDistance = 4 * kMaxOffset;

template <typename... Args>
absl::Status Wrong(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat("assignment.", args...));
}

int64_t RowsOf(const std::vector<int64_t>& rows, int64_t batch_row) {
  return rows.size() == 1 ? rows[0] : rows[batch_row];
}

template <typename Repeated>
absl::Status CheckRows(const Repeated& rows, int64_t batch, int64_t length,
                       const std::string& field) {
  if (rows.size() != 1 && rows.size() != batch) {
    return Wrong(field, " has ", rows.size(), " entries: must be 1 or spec.batch (", batch, ")");
  }
  for (const int64_t count : rows) {
    if (count < 0 || count > length) {
      return Wrong(field, " is ", count, ": must be between 0 and ", length);
    }
  }
  return absl::OkStatus();
}

uint64_t ShardBytes(v1::TensorId tensor, const v1::AttentionSpec& spec,
                    const std::vector<int64_t>& rows) {
  const TensorShape shape = ShapeOf(tensor, spec);
  uint64_t total_rows = 0;
  for (const int64_t count : rows) total_rows += count;
  if (rows.size() == 1) total_rows *= shape.batch;
  return total_rows * shape.planes_per_batch * shape.row_bytes;
}

// A bias that all batch rows share is there once for each that has rows of its own.
std::vector<uint64_t> BiasBlocks(const v1::AttentionSpec& spec, const std::vector<int64_t>& rows) {
  const TensorShape shape = ShapeOf(v1::TENSOR_ID_BIAS, spec);
  const uint64_t row_bytes = static_cast<uint64_t>(shape.planes_per_batch) * shape.row_bytes;
  std::vector<uint64_t> blocks;
  for (const int64_t count : rows)
    blocks.push_back((rows.size() == 1 ? shape.batch : 1) * row_bytes * count);
  return blocks;
}

using Shards = google::protobuf::RepeatedPtrField<v1::ShardRows>;

// One entry by rank, and together they hold the whole sequence.
absl::Status CheckShards(const v1::Assignment& assignment, const Shards& shards, int64_t length,
                         const std::string& field, const std::string& length_field) {
  const int64_t batch = assignment.spec().batch();
  if (shards.size() != assignment.ranks()) {
    return Wrong(field, " has ", shards.size(), " entries: must be ranks (", assignment.ranks(),
                 ")");
  }
  int64_t distinct_rows = 1;
  for (int rank = 0; rank < shards.size(); ++rank) {
    const absl::Status status =
        CheckRows(shards[rank].rows(), batch, length, absl::StrCat(field, "[", rank, "].rows"));
    if (!status.ok()) return status;
    if (shards[rank].rows_size() > 1) distinct_rows = batch;
  }
  for (int64_t b = 0; b < distinct_rows; ++b) {
    int64_t rows = 0;
    for (const v1::ShardRows& shard : shards) {
      rows += shard.rows(shard.rows_size() == 1 ? 0 : static_cast<int>(b));
    }
    if (rows != length) {
      return Wrong(field, " hold ", rows, " rows of batch row ", b, ": must be ", length_field,
                   " (", length, ")");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckShards(const v1::Assignment& assignment) {
  const v1::AttentionSpec& spec = assignment.spec();
  absl::Status status = CheckRows(assignment.q_rows(), spec.batch(), spec.q_len(), "q_rows");
  if (!status.ok()) return status;
  status =
      CheckShards(assignment, assignment.kv_shards(), spec.kv_len(), "kv_shards", "spec.kv_len");
  if (!status.ok() || assignment.q_shards().empty()) return status;
  if (spec.has_bias())
    return Wrong("q_shards with spec.bias: a bias stays with its queries' owner");
  status = CheckShards(assignment, assignment.q_shards(), spec.q_len(), "q_shards", "spec.q_len");
  if (!status.ok()) return status;
  const auto& own = assignment.q_shards(assignment.rank()).rows();
  if (!std::equal(own.begin(), own.end(), assignment.q_rows().begin(), assignment.q_rows().end()))
    return Wrong("q_shards[", assignment.rank(), "].rows is not q_rows");
  return absl::OkStatus();
}

absl::Status CheckTile(const v1::Tile& tile, const RankAssignment& job, const std::string& field) {
  const RankPlan& plan = job.plan;
  const std::vector<int64_t>& own_rows = plan.pass_q() ? plan.q_rows[tile.owner()] : job.q_rows;
  const std::vector<int64_t>& kv_rows = plan.kv_rows[plan.pass_q() ? plan.rank : tile.owner()];
  const int64_t batch = job.spec.batch();
  if (tile.batch_row() < -1 || tile.batch_row() >= batch) {
    return Wrong(field, ".batch_row is ", tile.batch_row(), ": must be -1 or below ", batch);
  }
  if (tile.batch_row() == -1 && batch > 1 && (own_rows.size() != 1 || kv_rows.size() != 1)) {
    return Wrong(field, ".batch_row is -1: but the batch rows do not share a layout");
  }
  const int64_t row = std::max(0, tile.batch_row());
  const int64_t q_rows = RowsOf(own_rows, row), k_rows = RowsOf(kv_rows, row);
  if (tile.q_begin() < 0 || tile.q_begin() >= tile.q_end() || tile.q_end() > q_rows) {
    return Wrong(field, ".q is [", tile.q_begin(), ", ", tile.q_end(), "): must lie in [0, ",
                 q_rows, ")");
  }
  if (tile.k_begin() < 0 || tile.k_begin() >= tile.k_end() || tile.k_end() > k_rows) {
    return Wrong(field, ".k is [", tile.k_begin(), ", ", tile.k_end(), "): must lie in [0, ",
                 k_rows, ")");
  }
  if (!ScoresByPosition(job.spec)) return absl::OkStatus();
  const int64_t most = job.spec.kv_len() - (tile.k_end() - tile.k_begin());
  if (tile.k_position() < 0 || tile.k_position() > most) {
    return Wrong(field, ".k_position is ", tile.k_position(), ": must lie in [0, ", most, "]");
  }
  if (tile.distance() < -kMostDistance || tile.distance() > kMostDistance) {
    return Wrong(field, ".distance is ", tile.distance(), ": must be within ", kMostDistance,
                 " of 0");
  }
  return absl::OkStatus();
}

absl::Status CheckPeer(int peer, const v1::Assignment& assignment, const std::string& field) {
  if (peer < 0 || peer >= assignment.ranks() || peer == assignment.rank())
    return Wrong(field, " is ", peer, ": must be another rank below ", assignment.ranks());
  return absl::OkStatus();
}

absl::Status CheckTransfer(const v1::Transfer& transfer, const v1::Assignment& assignment,
                           const std::string& field) {
  const absl::Status status = CheckPeer(transfer.peer(), assignment, absl::StrCat(field, ".peer"));
  if (!status.ok()) return status;
  if (transfer.owner() < 0 || transfer.owner() >= assignment.ranks()) {
    return Wrong(field, ".owner is ", transfer.owner(), ": must be below ", assignment.ranks());
  }
  return absl::OkStatus();
}

Tile FromProto(const v1::Tile& tile) {
  Tile out{.owner = tile.owner(),
           .q_begin = tile.q_begin(),
           .q_end = tile.q_end(),
           .k_begin = tile.k_begin(),
           .k_end = tile.k_end(),
           .batch_row = tile.batch_row(),
           .k_position = tile.k_position(),
           .distance = tile.distance()};
  if (tile.has_lo()) out.lo = tile.lo();
  if (tile.has_hi()) out.hi = tile.hi();
  return out;
}

// What a rank has at the beginning of a step.
struct Held {
  std::set<int> shards;    // by owner
  std::set<int> computed;  // pass-Q: whose queries' partials it has tiles of
  std::set<int> sent;      // pass-Q: whose partials it has sent
  std::set<int> returned;  // pass-Q: who sent a partial of its own queries
};

// The partials of step `index`: at its beginning, after all of their tiles, and once.
absl::Status AddPartials(const v1::Assignment& assignment, int index, std::set<int> receivers,
                         std::set<int> senders, Held& held, Step& out) {
  const v1::Step& step = assignment.steps(index);
  const std::string sends = absl::StrCat("steps[", index, "].partial_sends");
  const std::string recvs = absl::StrCat("steps[", index, "].partial_recvs");
  if (assignment.q_shards().empty() && step.partial_sends_size() + step.partial_recvs_size() > 0) {
    return Wrong("steps[", index, "] has partials: but no q_shards");
  }
  for (const int owner : step.partial_sends()) {
    absl::Status status = CheckPeer(owner, assignment, sends);
    if (!status.ok()) return status;
    if (!held.computed.contains(owner)) return Wrong(sends, " names ", owner, ": no tile was its");
    if (!held.sent.insert(owner).second) return Wrong(sends, " names ", owner, " once more");
    if (!receivers.insert(owner).second)
      return Wrong(sends, " names ", owner, ": a shard goes there in the same step");
    out.partial_sends.push_back(owner);
  }
  for (const int peer : step.partial_recvs()) {
    absl::Status status = CheckPeer(peer, assignment, recvs);
    if (!status.ok()) return status;
    if (!held.returned.insert(peer).second) return Wrong(recvs, " names ", peer, " once more");
    if (!senders.insert(peer).second)
      return Wrong(recvs, " names ", peer, ": a shard comes from there in the same step");
    out.partial_recvs.push_back(peer);
  }
  return absl::OkStatus();
}

// Checks step `index` against what is held before it, and appends it to the job's plan.
absl::Status AddStep(const v1::Assignment& assignment, int index, Held& held, RankAssignment& job) {
  const v1::Step& step = assignment.steps(index);
  Step out;
  std::set<int> receivers, senders, received;
  for (const v1::Transfer& transfer : step.sends()) {
    const std::string field = absl::StrCat("steps[", index, "].sends");
    absl::Status status = CheckTransfer(transfer, assignment, field);
    if (!status.ok()) return status;
    if (!held.shards.contains(transfer.owner())) {
      return Wrong(field, ".owner is ", transfer.owner(), ": its shard is not here yet");
    }
    if (!receivers.insert(transfer.peer()).second) {
      return Wrong(field, " names peer ", transfer.peer(), " twice");
    }
    out.sends.push_back({.peer = transfer.peer(), .owner = transfer.owner()});
  }
  for (const v1::Transfer& transfer : step.recvs()) {
    const std::string field = absl::StrCat("steps[", index, "].recvs");
    absl::Status status = CheckTransfer(transfer, assignment, field);
    if (!status.ok()) return status;
    if (held.shards.contains(transfer.owner()) || !received.insert(transfer.owner()).second) {
      return Wrong(field, ".owner is ", transfer.owner(), ": its shard is here already");
    }
    if (!senders.insert(transfer.peer()).second) {
      return Wrong(field, " names peer ", transfer.peer(), " twice");
    }
    out.recvs.push_back({.peer = transfer.peer(), .owner = transfer.owner()});
  }
  absl::Status partials = AddPartials(assignment, index, receivers, senders, held, out);
  if (!partials.ok()) return partials;
  for (int i = 0; i < step.tiles_size(); ++i) {
    const v1::Tile& tile = step.tiles(i);
    const std::string field = absl::StrCat("steps[", index, "].tiles[", i, "]");
    if (!held.shards.contains(tile.owner())) {
      return Wrong(field, ".owner is ", tile.owner(), ": its shard is not here yet");
    }
    if (held.sent.contains(tile.owner()))
      return Wrong(field, ".owner is ", tile.owner(), ": its partial has gone already");
    if (job.plan.pass_q() && tile.owner() != job.plan.rank) held.computed.insert(tile.owner());
    absl::Status status = CheckTile(tile, job, field);
    if (!status.ok()) return status;
    out.tiles.push_back(FromProto(tile));
  }
  held.shards.merge(received);
  job.plan.steps.push_back(std::move(out));
  return absl::OkStatus();
}

// The forward steps become those of the backward pass.
absl::Status TakeBackward(const v1::Assignment& assignment, RankAssignment& job) {
  if (!job.pass.backward) {
    if (job.pass.d_lse) return Wrong("d_lse without backward");
    if (!assignment.readers().empty()) return Wrong("readers without backward");
    return absl::OkStatus();
  }
  if (job.return_lse) return Wrong("return_lse with backward");
  absl::StatusOr<BackwardPlan> plan =
      MakeBackwardPlan(job.plan, {assignment.readers().begin(), assignment.readers().end()});
  if (!plan.ok()) return Wrong("readers or steps: ", plan.status().message());
  job.plan = std::move(plan->shards);
  job.gradients_to = std::move(plan->gradients_to);
  job.gradients_from = std::move(plan->gradients_from);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RankAssignment> ParseAssignment(const v1::Assignment& assignment) {
  if (assignment.job() == 0) return Wrong("job is 0: must name a job");
  if (assignment.ranks() < 1 || assignment.ranks() > kMaxRanks) {
    return Wrong("ranks is ", assignment.ranks(), ": must be between 1 and ", kMaxRanks);
  }
  if (assignment.rank() < 0 || assignment.rank() >= assignment.ranks()) {
    return Wrong("rank is ", assignment.rank(), ": must be below ranks (", assignment.ranks(), ")");
  }
  absl::Status status = ValidateSpec(assignment.spec());
  if (!status.ok()) return Wrong(status.message());
  status = CheckShards(assignment);
  if (!status.ok()) return status;

  RankAssignment job;
  job.request_id = assignment.request_id();
  job.spec = assignment.spec();
  job.pass = {.backward = assignment.backward(), .d_lse = assignment.d_lse()};
  job.return_lse = assignment.return_lse();
  job.lse_without_sinks = assignment.lse_without_sinks();
  job.q_rows.assign(assignment.q_rows().begin(), assignment.q_rows().end());
  job.peak_bytes = assignment.peak_bytes();
  job.plan.job = assignment.job();
  job.plan.rank = assignment.rank();
  for (const v1::ShardRows& shard : assignment.kv_shards()) {
    job.plan.kv_rows.emplace_back(shard.rows().begin(), shard.rows().end());
  }
  for (const v1::ShardRows& shard : assignment.q_shards()) {
    job.plan.q_rows.emplace_back(shard.rows().begin(), shard.rows().end());
  }
  Held held{.shards = {assignment.rank()}};
  for (int i = 0; i < assignment.steps_size(); ++i) {
    status = AddStep(assignment, i, held, job);
    if (!status.ok()) return status;
  }
  for (const int owner : held.computed) {
    if (!held.sent.contains(owner))
      return Wrong("steps compute for the queries of rank ", owner,
                   ": and never send it a partial");
  }

  status = TakeBackward(assignment, job);
  if (!status.ok()) return status;

  const std::vector<int64_t>& kv_rows = job.plan.kv_rows[job.plan.rank];
  job.q_bytes = ShardBytes(v1::TENSOR_ID_Q, job.spec, job.q_rows);
  job.k_bytes = ShardBytes(v1::TENSOR_ID_K, job.spec, kv_rows);
  job.v_bytes = ShardBytes(v1::TENSOR_ID_V, job.spec, kv_rows);
  job.out_bytes = ShardBytes(v1::TENSOR_ID_OUT, job.spec, job.q_rows);
  job.lse_bytes = ShardBytes(v1::TENSOR_ID_LSE, job.spec, job.q_rows);
  if (job.spec.has_bias()) job.bias_blocks = BiasBlocks(job.spec, job.q_rows);
  if (job.spec.alibi_slopes())
    job.slope_bytes = ShapeOf(v1::TENSOR_ID_ALIBI_SLOPES, job.spec).bytes();
  if (job.spec.sink_logits()) job.sink_bytes = ShapeOf(v1::TENSOR_ID_SINK_LOGITS, job.spec).bytes();
  uint64_t shards = 0;
  for (const v1::TensorId tensor : job.Held()) shards += job.BytesOf(tensor);
  if (shards > job.peak_bytes) {
    return Wrong("peak_bytes is ", job.peak_bytes, ": the shards alone take ", shards);
  }
  return job;
}

absl::Status BindMembers(const v1::Start& start, int own_index, int epoch_members, RankPlan& plan) {
  const size_t ranks = plan.kv_rows.size();
  if (static_cast<size_t>(start.members_size()) != ranks) {
    return absl::InvalidArgumentError(absl::StrCat("start.members has ", start.members_size(),
                                                   " entries: must be ranks (", ranks, ")"));
  }
  std::set<int> seen;
  for (const int member : start.members()) {
    if (member < 0 || member >= epoch_members || !seen.insert(member).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          "start.members names ", member, ": must be different indices below ", epoch_members));
    }
  }
  if (start.members(plan.rank) != own_index) {
    return absl::InvalidArgumentError(absl::StrCat("start.members binds rank ", plan.rank, " to ",
                                                   start.members(plan.rank), ": this worker is ",
                                                   own_index));
  }
  plan.members.assign(start.members().begin(), start.members().end());
  return absl::OkStatus();
}

}  // namespace ringserve
