#include "client/ringctl/reference_attention.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "client/ringctl/elements.h"
#include "client/ringctl/score_extras.h"
#include "client/ringctl/visible_keys.h"

namespace ringserve {
namespace {

constexpr int64_t kBlockKeys = 128;
constexpr int64_t kTileRows = 4;
constexpr int64_t kTileColumns = 8;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// c[r][n] += sum over k of a[r][k] b[k][n], for kTileRows rows and `columns`, a multiple of
// kTileColumns.
void MultiplyAdd(const double* a, int64_t inner, const double* b, int64_t columns, double* c) {
  for (int64_t n = 0; n < columns; n += kTileColumns) {
    double sum[kTileRows][kTileColumns] = {};
    for (int64_t k = 0; k < inner; ++k) {
      for (int64_t r = 0; r < kTileRows; ++r) {
        for (int64_t i = 0; i < kTileColumns; ++i)
          sum[r][i] += a[r * inner + k] * b[k * columns + n + i];
      }
    }
    for (int64_t r = 0; r < kTileRows; ++r) {
      for (int64_t i = 0; i < kTileColumns; ++i) c[r * columns + n + i] += sum[r][i];
    }
  }
}

double Norm(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

// Keys and values of one block, as doubles: keys transposed, both padded with zeros.
struct Block {
  Block(int64_t dim, int64_t value_columns)
      : keys(dim * kBlockKeys), values(kBlockKeys * value_columns) {}

  int64_t begin = 0, size = 0;
  std::vector<double> keys;    // [D][kBlockKeys]
  std::vector<double> values;  // [kBlockKeys][columns]
  bool values_finite = true;
  double key_norms[kBlockKeys] = {};    // |k_j|
  double value_sizes[kBlockKeys] = {};  // largest finite |v_jd|
};

// One more key of score `sink` and value 0.
void AddSink(double sink, ReferenceRow& row) {
  if (!std::isfinite(sink)) {
    row.undefined = true;
    return;
  }
  const double larger = std::max(row.lse, sink);
  row.lse = larger + std::log(std::exp(row.lse - larger) + std::exp(sink - larger));
  const double share = std::exp(row.lse_without_sinks - row.lse);
  for (double& element : row.out) element *= share;
  row.value_magnitude *= share;
  row.value_spread *= share;
  row.score_magnitude = std::max(row.score_magnitude, std::fabs(sink));
}

// What a row has gathered so far; sums are relative to e^max.
struct Accumulator {
  double max = -kInfinity, sum = 0, weighted = 0, weighted_squares = 0, score_magnitude = 0;
  double query_norm = 0, largest_extra = 0;
  int64_t keys = 0;
  bool undefined = false;
};

class Reference {
 public:
  Reference(const v1::AttentionSpec& spec, const AttendInputs& inputs, int64_t batch,
            int64_t kv_head, std::span<const RowId> rows);
  std::vector<ReferenceRow> Run();

 private:
  void Load(int64_t begin);
  void AddBlock(int64_t first);
  // Turns one row's scores into weights, and makes the row ready to take them.
  void Weigh(int64_t row, double* scores);
  void AddSeenValues(const double* weights, double* out);

  const v1::AttentionSpec& spec_;
  const AttendInputs& inputs_;
  const int64_t batch_, kv_head_;
  const std::span<const RowId> rows_;
  const int64_t dim_, value_dim_, columns_;  // columns: value_dim padded for MultiplyAdd
  const v1::Mask full_;
  const ScoreExtras extras_;
  Block block_;
  std::vector<VisibleKeys> sees_;
  std::vector<Accumulator> state_;
  std::vector<double> queries_;  // [rows][D], times scale
  std::vector<double> out_;      // [rows][columns]
};

Reference::Reference(const v1::AttentionSpec& spec, const AttendInputs& inputs, int64_t batch,
                     int64_t kv_head, std::span<const RowId> rows)
    : spec_(spec),
      inputs_(inputs),
      batch_(batch),
      kv_head_(kv_head),
      rows_(rows),
      dim_(spec.head_dim()),
      value_dim_(ValueDimOf(spec)),
      columns_(RoundUp(value_dim_, kTileColumns)),
      extras_(spec, inputs),
      block_(dim_, columns_),
      state_(rows.size()),
      queries_(RoundUp(rows.size(), kTileRows) * dim_),
      out_(RoundUp(rows.size(), kTileRows) * columns_) {
  const double scale =
      spec.has_scale() ? spec.scale() : 1 / std::sqrt(static_cast<double>(spec.head_dim()));
  const v1::Mask& mask = spec.masks().empty()     ? full_
                         : spec.masks_size() == 1 ? spec.masks(0)
                                                  : spec.masks(static_cast<int>(batch));
  sees_.reserve(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    sees_.emplace_back(mask, spec.q_len(), spec.kv_len(), rows[i].query);
    const std::span<double> query = std::span(queries_).subspan(i * dim_, dim_);
    ReadElements(
        inputs.q, spec.dtype(),
        RowElement(spec, batch, rows[i].head, rows[i].query, spec.q_heads(), spec.q_len(), dim_),
        query);
    for (double& element : query) element *= scale;
    state_[i].query_norm = Norm(query);
  }
}

void Reference::Load(int64_t begin) {
  block_.begin = begin;
  block_.size = std::min(kBlockKeys, spec_.kv_len() - begin);
  block_.values_finite = true;
  std::vector<double> key(dim_);
  for (int64_t j = 0; j < block_.size; ++j) {
    ReadElements(
        inputs_.k, spec_.dtype(),
        RowElement(spec_, batch_, kv_head_, begin + j, spec_.kv_heads(), spec_.kv_len(), dim_),
        key);
    for (int64_t d = 0; d < dim_; ++d) block_.keys[d * kBlockKeys + j] = key[d];
    block_.key_norms[j] = Norm(key);

    const std::span<double> value = std::span(block_.values).subspan(j * columns_, value_dim_);
    ReadElements(inputs_.v, spec_.dtype(),
                 RowElement(spec_, batch_, kv_head_, begin + j, spec_.kv_heads(), spec_.kv_len(),
                            value_dim_),
                 value);
    block_.value_sizes[j] = 0;
    for (const double element : value) {
      if (std::isfinite(element))
        block_.value_sizes[j] = std::max(block_.value_sizes[j], std::fabs(element));
      else
        block_.values_finite = false;
    }
  }
  // What an earlier block left behind would be multiplied by 0, which mends no NaN.
  std::fill(block_.values.begin() + block_.size * columns_, block_.values.end(), 0.0);
}

void Reference::Weigh(int64_t row, double* scores) {
  Accumulator& state = state_[row];
  uint8_t sees[kBlockKeys];
  const int64_t end = block_.begin + block_.size;
  int64_t seen = sees_[row].Fill(block_.begin, end, sees);
  seen -= extras_.Apply(batch_, rows_[row].head, rows_[row].query, sees_[row], block_.begin, end,
                        sees, scores, state.largest_extra);
  double max = state.max;
  for (int64_t j = 0; j < block_.size; ++j) {
    if (sees[j] == 0) continue;
    if (!std::isfinite(scores[j])) state.undefined = true;
    max = std::max(max, scores[j]);
    state.score_magnitude = std::max(state.score_magnitude, state.query_norm * block_.key_norms[j]);
  }
  state.keys += seen;
  if (seen == 0 || state.undefined) {
    std::fill_n(scores, kBlockKeys, 0.0);
    return;
  }
  const double fade = std::exp(state.max - max);
  state.max = max;
  state.sum *= fade;
  state.weighted *= fade;
  state.weighted_squares *= fade * fade;
  if (fade != 1) {
    for (int64_t d = 0; d < columns_; ++d) out_[row * columns_ + d] *= fade;
  }
  for (int64_t j = 0; j < kBlockKeys; ++j) {
    scores[j] = j < block_.size && sees[j] != 0 ? std::exp(scores[j] - max) : 0;
    state.sum += scores[j];
    const double weighted = scores[j] * block_.value_sizes[j];
    state.weighted += weighted;
    state.weighted_squares += weighted * weighted;
  }
}

// Where a value is not finite, 0 times it is not 0: keys that are not seen must not be touched.
void Reference::AddSeenValues(const double* weights, double* out) {
  for (int64_t j = 0; j < block_.size; ++j) {
    if (weights[j] == 0) continue;
    for (int64_t d = 0; d < value_dim_; ++d) out[d] += weights[j] * block_.values[j * columns_ + d];
  }
}

void Reference::AddBlock(int64_t first) {
  double scores[kTileRows * kBlockKeys] = {};
  const int64_t count = std::min<int64_t>(kTileRows, rows_.size() - first);
  MultiplyAdd(&queries_[first * dim_], dim_, block_.keys.data(), kBlockKeys, scores);
  for (int64_t r = 0; r < count; ++r) Weigh(first + r, scores + r * kBlockKeys);
  std::fill(scores + count * kBlockKeys, scores + kTileRows * kBlockKeys, 0.0);
  if (block_.values_finite) {
    MultiplyAdd(scores, kBlockKeys, block_.values.data(), columns_, &out_[first * columns_]);
  } else {
    for (int64_t r = 0; r < count; ++r)
      AddSeenValues(scores + r * kBlockKeys, &out_[(first + r) * columns_]);
  }
}

std::vector<ReferenceRow> Reference::Run() {
  uint8_t sees[kBlockKeys];
  for (int64_t begin = 0; begin < spec_.kv_len(); begin += kBlockKeys) {
    Load(begin);
    for (size_t first = 0; first < rows_.size(); first += kTileRows) {
      const size_t end = std::min(first + kTileRows, rows_.size());
      bool seen = false;
      for (size_t i = first; i < end && !seen; ++i)
        seen = sees_[i].Fill(begin, begin + block_.size, sees) > 0;
      if (seen) AddBlock(static_cast<int64_t>(first));
    }
  }
  std::vector<ReferenceRow> result(rows_.size());
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Accumulator& state = state_[i];
    ReferenceRow& row = result[i];
    row.keys = state.keys;
    row.undefined = state.undefined;
    row.out.assign(value_dim_, 0);
    row.lse = row.lse_without_sinks = -kInfinity;
    if (state.keys > 0 && !state.undefined) {
      for (int64_t d = 0; d < value_dim_; ++d) row.out[d] = out_[i * columns_ + d] / state.sum;
      row.lse = row.lse_without_sinks = state.max + std::log(state.sum);
      row.value_magnitude = state.weighted / state.sum;
      row.value_spread = std::sqrt(state.weighted_squares) / state.sum;
      row.score_magnitude = state.score_magnitude + state.largest_extra;
    }
    if (const std::optional<double> sink = extras_.Sink(rows_[i].head)) AddSink(*sink, row);
  }
  return result;
}

}  // namespace

std::vector<ReferenceRow> ReferenceAttention(const v1::AttentionSpec& spec,
                                             const AttendInputs& inputs, int64_t batch,
                                             int64_t kv_head, std::span<const RowId> rows) {
  return Reference(spec, inputs, batch, kv_head, rows).Run();
}

int64_t RowElement(const v1::AttentionSpec& spec, int64_t batch, int64_t head, int64_t position,
                   int64_t heads, int64_t length, int64_t dim) {
  if (spec.tensor_layout() == v1::TENSOR_LAYOUT_BSHD)
    return ((batch * length + position) * heads + head) * dim;
  return ((batch * heads + head) * length + position) * dim;
}

int64_t ValueDimOf(const v1::AttentionSpec& spec) {
  return spec.value_dim() != 0 ? spec.value_dim() : spec.head_dim();
}

}  // namespace ringserve
