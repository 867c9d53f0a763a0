// Merges two partials and calls a server that is not there, by the installed package alone.
#include <cstdio>
#include <vector>

#include <ringserve/client.h>
#include <ringserve/merge.h>

int main() {
  std::vector<float> sum = {1}, sum_lse = {0}, part = {3}, part_lse = {0};
  if (!ringserve::MergePartials({}, {sum, sum_lse}, {part, part_lse}).ok() || sum[0] != 2) return 1;

  ringserve::v1::AttendHeader header;
  ringserve::v1::AttentionSpec& spec = *header.mutable_spec();
  spec.set_batch(1);
  spec.set_q_heads(2);
  spec.set_kv_heads(1);
  spec.set_q_len(3);
  spec.set_kv_len(4);
  spec.set_head_dim(8);
  spec.set_dtype(ringserve::v1::DTYPE_F32);
  header.mutable_options()->set_return_lse(true);
  const auto bytes = ringserve::BytesOf(spec);
  const auto client = ringserve::Client::Connect({.server = "127.0.0.1:1"});
  if (!bytes.ok() || !client.ok()) return 1;
  const std::vector<std::byte> q(bytes->q), k(bytes->k), v(bytes->v);
  std::vector<std::byte> out(bytes->out), lse(bytes->lse);
  const auto result = (*client)->Attend(header, {q, k, v}, {out, lse}, {.max_attempts = 1});
  std::printf("%s\n", result.status().ToString().c_str());
  return result.status().code() == absl::StatusCode::kUnavailable ? 0 : 1;
}
