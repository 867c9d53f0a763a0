#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/tensor_shape.h"
#include "server/plan/mask.h"
#include "server/plan/names.h"
#include "server/plan/plan.h"

namespace ringserve {
namespace {

constexpr int kMostRanks = 16;
constexpr int kMostSteps = 16;
constexpr size_t kMostSegments = 4;

using Table = std::vector<std::vector<std::string>>;

// Columns as wide as their widest cell; the first `left` of them flush left.
std::string Format(const Table& table, const std::vector<bool>& left) {
  std::vector<size_t> widths;
  for (const std::vector<std::string>& row : table) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const std::vector<std::string>& row : table) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - row[i].size(), ' ');
      const bool flush_left = i < left.size() && left[i];
      absl::StrAppend(&line, i ? "  " : "", flush_left ? "" : padding, row[i],
                      flush_left ? padding : "");
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

// 999, 1.23 k, 45.6 M, ...
std::string Count(uint64_t value) {
  static constexpr const char* kUnits[] = {"", " k", " M", " G", " T", " P", " E"};
  double scaled = static_cast<double>(value);
  size_t unit = 0;
  for (; scaled >= 999.5 && unit + 1 < std::size(kUnits); ++unit) scaled /= 1000;
  if (unit == 0) return absl::StrCat(value);
  return absl::StrFormat("%.3g%s", scaled, kUnits[unit]);
}

std::string Bytes(uint64_t value) {
  static constexpr const char* kUnits[] = {" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"};
  double scaled = static_cast<double>(value);
  size_t unit = 0;
  for (; scaled >= 1000 && unit + 1 < std::size(kUnits); ++unit) scaled /= 1024;
  const int decimals = unit == 0 || scaled >= 100 ? 0 : 1;
  return absl::StrFormat("%.*f%s", decimals, scaled, kUnits[unit]);
}

std::string DTypeName(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F32:
      return "f32";
    case v1::DTYPE_F64:
      return "f64";
    case v1::DTYPE_BF16:
      return "bf16";
    case v1::DTYPE_F16:
      return "f16";
    default:
      return absl::StrCat("dtype ", static_cast<int>(dtype));
  }
}

std::string Segments(const std::vector<Segment>& segments) {
  if (segments.empty()) return "none";
  std::string text;
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments.size() > kMostSegments && i + 1 >= kMostSegments && i + 1 < segments.size()) {
      if (i + 1 == kMostSegments)
        absl::StrAppend(&text, " ... ", segments.size() - kMostSegments, " more ...");
      continue;
    }
    absl::StrAppend(&text, i ? " " : "", "[", segments[i].begin, ",", segments[i].end, ")");
  }
  return text;
}

std::string Extras(const v1::AttentionSpec& spec) {
  std::string text;
  if (spec.has_bias()) {
    const TensorShape bias = ShapeOf(v1::TENSOR_ID_BIAS, spec);
    absl::StrAppend(&text, spec.bias().boolean() ? ", boolean bias [" : ", bias [", bias.batch,
                    ", ", bias.planes_per_batch, ", ", spec.q_len(), ", ", spec.kv_len(), "] of ",
                    Bytes(bias.bytes()));
  }
  if (spec.alibi_slopes()) absl::StrAppend(&text, ", ALiBi");
  if (spec.sink_logits()) absl::StrAppend(&text, ", sink logits");
  return text;
}

std::string Headline(const Plan& plan) {
  const v1::AttentionSpec& spec = plan.spec;
  std::string text = absl::StrCat(
      "attention   ", plan.pass.backward ? "gradients of " : "", DescribeMasks(spec), "; batch ",
      spec.batch(), ", queries ", spec.q_len(), " x ", spec.q_heads(), " heads, keys ",
      spec.kv_len(), " x ", spec.kv_heads(), " heads, head dim ", spec.head_dim());
  if (spec.value_dim() != spec.head_dim()) absl::StrAppend(&text, ", value dim ", spec.value_dim());
  absl::StrAppend(&text, ", ", DTypeName(spec.dtype()), Extras(spec), "\n");
  absl::StrAppend(&text, "plan        ", BalancerName(plan.options.balancer()), ", ",
                  RotateName(plan.options.rotate()), ", ", plan.ranks(),
                  plan.ranks() == 1 ? " worker" : " workers", "; imbalance ",
                  absl::StrFormat("%s%.3f (totals %.3f); %.3g s estimated\n",
                                  plan.imbalance_is_bound ? "<= " : "", plan.imbalance,
                                  plan.imbalance_total, plan.estimated_seconds));
  absl::StrAppend(&text, "why         ", plan.reason, "\n");
  return text;
}

std::string Rows(const SequenceLayout& layout, int rank, int64_t batch) {
  if (layout.shared()) return absl::StrCat(layout.RowsOf(rank, 0));
  int64_t fewest = layout.RowsOf(rank, 0);
  int64_t most = fewest;
  for (int64_t b = 1; b < batch; ++b) {
    fewest = std::min(fewest, layout.RowsOf(rank, b));
    most = std::max(most, layout.RowsOf(rank, b));
  }
  return fewest == most ? absl::StrCat(most) : absl::StrCat(fewest, "-", most);
}

std::string RankTable(const Plan& plan, int shown) {
  const bool same = plan.q == plan.kv;
  const bool shared = plan.q.shared() && plan.kv.shared();
  uint64_t total = 0;
  for (uint64_t work : plan.work) total += work;
  Table table = {{"rank", shared ? "queries" : "queries (batch row 0)", "rows", "keys", "rows",
                  "work", "share", "sends", "peak"}};
  for (int rank = 0; rank < shown; ++rank) {
    table.push_back({absl::StrCat(rank), Segments(plan.q.row(0)[rank]),
                     Rows(plan.q, rank, plan.spec.batch()),
                     same ? "same" : Segments(plan.kv.row(0)[rank]),
                     Rows(plan.kv, rank, plan.spec.batch()), Count(plan.work[rank]),
                     absl::StrFormat("%.1f %%", total ? 100.0 * plan.work[rank] / total : 0.0),
                     Bytes(plan.bytes_sent[rank]), Bytes(plan.peak_bytes[rank])});
  }
  std::string text = Format(table, {false, true, false, true});
  if (shown < plan.ranks()) absl::StrAppend(&text, "... ", plan.ranks() - shown, " more ranks\n");
  return text;
}

// Whose shard of `kind`, how many tiles of what kind, and what moves meanwhile.
std::string Cell(const v1::Step& step, const char* kind, const char* partial) {
  int full = 0, causal = 0, bands = 0;
  std::string owners;
  int last_owner = -1;
  for (const v1::Tile& tile : step.tiles()) {
    const bool square = tile.q_end() - tile.q_begin() >= tile.k_end() - tile.k_begin();
    if (!tile.has_lo() && !tile.has_hi()) {
      ++full;
    } else if (!tile.has_lo() && tile.hi() == 0 && square) {
      ++causal;
    } else {
      ++bands;
    }
    if (tile.owner() == last_owner) continue;
    absl::StrAppend(&owners, last_owner < 0 ? absl::StrCat(kind, " ") : ",", tile.owner());
    last_owner = tile.owner();
  }
  std::string text = owners.empty() ? "-" : absl::StrCat(owners, ":");
  if (full) absl::StrAppend(&text, " ", full, " full");
  if (causal) absl::StrAppend(&text, " ", causal, " causal");
  if (bands) absl::StrAppend(&text, " ", bands, bands == 1 ? " band" : " bands");
  for (const v1::Transfer& send : step.sends()) {
    absl::StrAppend(&text, " >", send.peer());
    if (send.owner() != last_owner) absl::StrAppend(&text, "(", kind, " ", send.owner(), ")");
  }
  for (const int owner : step.partial_sends()) absl::StrAppend(&text, " ", partial, ">", owner);
  return text;
}

std::string StepTable(const Plan& plan, int shown) {
  const char* kind = plan.options.rotate() == v1::ROTATE_METHOD_PASS_Q ? "q" : "kv";
  const char* partial = plan.pass.backward ? "gradients" : "partial";
  std::vector<std::vector<v1::Step>> steps;
  size_t most = 0;
  Table table = {{"step"}};
  for (int rank = 0; rank < shown; ++rank) {
    steps.push_back(plan.pass.backward ? BackwardStepsFor(plan, rank) : StepsFor(plan, rank));
    most = std::max(most, steps.back().size());
    table[0].push_back(absl::StrCat("rank ", rank));
  }
  const size_t rows = std::min<size_t>(most, kMostSteps);
  for (size_t t = 0; t < rows; ++t) {
    std::vector<std::string> row = {absl::StrCat(t)};
    for (const std::vector<v1::Step>& rank_steps : steps) {
      row.push_back(t < rank_steps.size() ? Cell(rank_steps[t], kind, partial) : "");
    }
    table.push_back(std::move(row));
  }
  std::string text = Format(table, std::vector<bool>(static_cast<size_t>(shown) + 1, true));
  if (rows < most) absl::StrAppend(&text, "... ", most - rows, " more steps\n");
  return text;
}

}  // namespace

std::string Describe(const Plan& plan) {
  const int shown = std::min(plan.ranks(), kMostRanks);
  return absl::StrCat(Headline(plan), "\n", RankTable(plan, shown), "\n", StepTable(plan, shown));
}

}  // namespace ringserve
