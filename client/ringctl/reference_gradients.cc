#include "client/ringctl/reference_gradients.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "client/ringctl/elements.h"
#include "client/ringctl/reference_attention.h"
#include "client/ringctl/score_extras.h"
#include "client/ringctl/visible_keys.h"

namespace ringserve {
namespace {

v1::DType WideType(v1::DType dtype) {
  return dtype == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32;
}

// Of rounding to nearest.
double UnitRoundoff(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F64:
      return 0x1p-53;
    case v1::DTYPE_BF16:
      return 0x1p-8;
    case v1::DTYPE_F16:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

// Of the weights, relative.
double ExpError(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F64:
      return 0x1p-51;
    case v1::DTYPE_F32:
      return 0x1p-20;
    default:
      return 0x1p-13;
  }
}

// Rounding of a smaller `out` is not relative to it.
double LeastNormal(v1::DType dtype) { return dtype == v1::DTYPE_F16 ? 0x1p-14 : 0x1p-126; }

std::vector<double> Doubles(std::span<const std::byte> tensor, v1::DType dtype, int64_t count) {
  std::vector<double> values(count);
  ReadElements(tensor, dtype, 0, values);
  return values;
}

ReferenceGradient Zeros(size_t count) {
  return {std::vector<double>(count), std::vector<double>(count)};
}

void Add(ReferenceGradient& gradient, int64_t at, double value, double magnitude) {
  gradient.values[at] += value;
  gradient.magnitudes[at] += magnitude;
}

// One query against all keys.
class Gradients {
 public:
  Gradients(const v1::AttentionSpec& spec, const AttendInputs& inputs,
            std::span<const std::byte> d_out, std::span<const std::byte> d_lse,
            bool lse_without_sinks);
  ReferenceGradients Run();

 private:
  void AddRow(int64_t batch, int64_t head, int64_t query);
  // Fills weights_ with the scores of the keys in sees_; how many there are.
  int64_t Score(int64_t batch, int64_t head, int64_t query);
  // Makes the scores in weights_ their exponentials, times one factor; their sum, and the sink's.
  std::pair<double, double> Exponentiate(double sink);
  void AddPair(int64_t batch, int64_t head, int64_t key, const double* query, const double* d_out,
               int64_t q_at, double d_score, double magnitude);
  int64_t KeyAt(int64_t batch, int64_t head, int64_t key, int64_t dim) const {
    return RowElement(spec_, batch, head / (spec_.q_heads() / spec_.kv_heads()), key,
                      spec_.kv_heads(), spec_.kv_len(), dim);
  }
  int64_t QueryAt(int64_t batch, int64_t head, int64_t query, int64_t dim) const {
    return RowElement(spec_, batch, head, query, spec_.q_heads(), spec_.q_len(), dim);
  }

  const v1::AttentionSpec& spec_;
  const int64_t dim_, value_dim_;
  const double scale_;
  const bool lse_without_sinks_;
  const std::vector<double> q_, k_, v_, d_out_, d_lse_;
  const ScoreExtras extras_;
  const v1::Mask full_;
  std::vector<uint8_t> sees_;
  std::vector<double> weights_;
  ReferenceGradients sums_;
};

Gradients::Gradients(const v1::AttentionSpec& spec, const AttendInputs& inputs,
                     std::span<const std::byte> d_out, std::span<const std::byte> d_lse,
                     bool lse_without_sinks)
    : spec_(spec),
      dim_(spec.head_dim()),
      value_dim_(ValueDimOf(spec)),
      scale_(spec.has_scale() ? spec.scale() : 1 / std::sqrt(static_cast<double>(dim_))),
      lse_without_sinks_(lse_without_sinks),
      q_(Doubles(inputs.q, spec.dtype(), spec.batch() * spec.q_heads() * spec.q_len() * dim_)),
      k_(Doubles(inputs.k, spec.dtype(), spec.batch() * spec.kv_heads() * spec.kv_len() * dim_)),
      v_(Doubles(inputs.v, spec.dtype(),
                 spec.batch() * spec.kv_heads() * spec.kv_len() * value_dim_)),
      d_out_(
          Doubles(d_out, spec.dtype(), spec.batch() * spec.q_heads() * spec.q_len() * value_dim_)),
      d_lse_(d_lse.empty() ? std::vector<double>()
                           : Doubles(d_lse, WideType(spec.dtype()),
                                     spec.batch() * spec.q_heads() * spec.q_len())),
      extras_(spec, inputs),
      sees_(spec.kv_len()),
      weights_(spec.kv_len()),
      sums_{Zeros(q_.size()), Zeros(k_.size()), Zeros(v_.size()),
            Zeros(spec.sink_logits() ? spec.q_heads() : 0), 0} {}

ReferenceGradients Gradients::Run() {
  for (int64_t batch = 0; batch < spec_.batch(); ++batch) {
    for (int64_t head = 0; head < spec_.q_heads(); ++head) {
      for (int64_t query = 0; query < spec_.q_len(); ++query) AddRow(batch, head, query);
    }
  }
  return std::move(sums_);
}

int64_t Gradients::Score(int64_t batch, int64_t head, int64_t query) {
  const v1::Mask& mask = spec_.masks().empty()     ? full_
                         : spec_.masks_size() == 1 ? spec_.masks(0)
                                                   : spec_.masks(static_cast<int>(batch));
  const VisibleKeys visible(mask, spec_.q_len(), spec_.kv_len(), query);
  const int64_t seen = visible.Fill(0, spec_.kv_len(), sees_.data());
  const double* q = &q_[QueryAt(batch, head, query, dim_)];
  double bound = 0;
  for (int64_t key = 0; key < spec_.kv_len(); ++key) {
    if (sees_[key] == 0) continue;
    const double* k = &k_[KeyAt(batch, head, key, dim_)];
    double product = 0, size = 0;
    for (int64_t d = 0; d < dim_; ++d) {
      product += q[d] * k[d];
      size += std::fabs(q[d] * k[d]);
    }
    weights_[key] = scale_ * product;
    bound = std::max(bound, std::fabs(scale_) * size);
  }
  double added = 0;
  const int64_t hidden = extras_.Apply(batch, head, query, visible, 0, spec_.kv_len(), sees_.data(),
                                       weights_.data(), added);
  sums_.largest_score = std::max(sums_.largest_score, bound + added);
  return seen - hidden;
}

std::pair<double, double> Gradients::Exponentiate(double sink) {
  double largest = sink, sum = 0;
  for (size_t j = 0; j < sees_.size(); ++j) {
    if (sees_[j] != 0) largest = std::max(largest, weights_[j]);
  }
  for (size_t j = 0; j < sees_.size(); ++j) {
    if (sees_[j] != 0) sum += weights_[j] = std::exp(weights_[j] - largest);
  }
  return {sum, std::exp(sink - largest)};
}

// With P the weights, sinks counted, and dP_j = d_out v_j: d_score_j = P_j (dP_j - delta + d_lse'),
// delta = sum P_j dP_j; d_lse' = d_lse, times e^(lse - bare lse) where it is of the bare one.
void Gradients::AddRow(int64_t batch, int64_t head, int64_t query) {
  const std::optional<double> sink = extras_.Sink(head);
  const int64_t seen = Score(batch, head, query);
  if (seen == 0 && !sink.has_value()) return;
  const auto [bare_sum, sink_term] = Exponentiate(sink.value_or(-kInfinity));
  const double sum = bare_sum + sink_term;
  const int64_t out_at = QueryAt(batch, head, query, value_dim_);
  const double* d_out = &d_out_[out_at];
  const double d_lse =
      d_lse_.empty() ? 0 : d_lse_[(batch * spec_.q_heads() + head) * spec_.q_len() + query];

  std::vector<double> d_weights(sees_.size()), sizes(sees_.size());
  double delta = 0, magnitude = std::fabs(d_lse);
  for (int64_t d = 0; d < value_dim_; ++d) {
    magnitude += std::fabs(d_out[d]) * LeastNormal(spec_.dtype());
  }
  for (size_t j = 0; j < sees_.size(); ++j) {
    if (sees_[j] == 0) continue;
    weights_[j] /= sum;
    const double* v = &v_[KeyAt(batch, head, static_cast<int64_t>(j), value_dim_)];
    for (int64_t d = 0; d < value_dim_; ++d) {
      d_weights[j] += d_out[d] * v[d];
      sizes[j] += std::fabs(d_out[d] * v[d]);
    }
    delta += weights_[j] * d_weights[j];
    magnitude += weights_[j] * sizes[j];
  }
  if (sink.has_value()) {
    const double weight = sink_term / sum;
    Add(sums_.d_sink_logits, head, weight * ((lse_without_sinks_ ? 0 : d_lse) - delta),
        weight * magnitude);
  }
  const double lse_weight = lse_without_sinks_ && seen > 0 ? sum / bare_sum : 1;
  const int64_t q_at = QueryAt(batch, head, query, dim_);
  for (size_t j = 0; j < sees_.size(); ++j) {
    if (sees_[j] == 0) continue;
    AddPair(batch, head, static_cast<int64_t>(j), &q_[q_at], d_out, q_at,
            d_weights[j] + d_lse * lse_weight - delta,
            sizes[j] + magnitude * std::max(1.0, lse_weight));
  }
}

// `d_score` is not yet weighted.
void Gradients::AddPair(int64_t batch, int64_t head, int64_t key, const double* query,
                        const double* d_out, int64_t q_at, double d_score, double magnitude) {
  const double weight = weights_[key];
  const int64_t v_at = KeyAt(batch, head, key, value_dim_);
  for (int64_t d = 0; d < value_dim_; ++d) {
    Add(sums_.d_v, v_at + d, weight * d_out[d], std::fabs(weight * d_out[d]));
  }
  const int64_t k_at = KeyAt(batch, head, key, dim_);
  const double factor = scale_ * weight;
  for (int64_t d = 0; d < dim_; ++d) {
    const double of_q = factor * k_[k_at + d], of_k = factor * query[d];
    Add(sums_.d_q, q_at + d, of_q * d_score, std::fabs(of_q) * magnitude);
    Add(sums_.d_k, k_at + d, of_k * d_score, std::fabs(of_k) * magnitude);
  }
}

}  // namespace

ReferenceGradients AttentionGradients(const v1::AttentionSpec& spec, const AttendInputs& inputs,
                                      std::span<const std::byte> d_out,
                                      std::span<const std::byte> d_lse, bool lse_without_sinks) {
  return Gradients(spec, inputs, d_out, d_lse, lse_without_sinks).Run();
}

std::optional<Deviation> WorstGradient(const v1::AttentionSpec& spec,
                                       const ReferenceGradients& gradients,
                                       const ReferenceGradient& expected,
                                       std::span<const std::byte> actual, v1::DType dtype) {
  const std::vector<double> numbers =
      Doubles(actual, dtype, static_cast<int64_t>(expected.values.size()));
  const double of_terms = 2 * UnitRoundoff(spec.dtype()) + 2 * ExpError(spec.dtype()) +
                          UnitRoundoff(WideType(spec.dtype())) *
                              (std::sqrt(static_cast<double>(spec.kv_len() + spec.q_len())) +
                               16 * (1 + gradients.largest_score));
  const double least = dtype == v1::DTYPE_F16 ? 0x1p-24 : 1e-37;  // the smallest numbers' rounding
  std::optional<Deviation> worst;
  for (size_t i = 0; i < numbers.size(); ++i) {
    const Deviation one = {{},
                           static_cast<int64_t>(i),
                           numbers[i],
                           expected.values[i],
                           of_terms * expected.magnitudes[i] +
                               UnitRoundoff(dtype) * std::fabs(expected.values[i]) + least};
    if (!worst.has_value() || one.excess() > worst->excess()) worst = one;
  }
  return worst;
}

}  // namespace ringserve
