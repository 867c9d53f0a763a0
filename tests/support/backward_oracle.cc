#include "tests/support/backward_oracle.h"

#include "absl/strings/str_format.h"
#include "tests/support/oracle_numbers.h"

namespace ringserve::test {
namespace {

ReferenceGradient Zeros(size_t n) { return {std::vector<double>(n), std::vector<double>(n)}; }

void Add(ReferenceGradient& gradient, int64_t at, double value, double magnitude) {
  gradient.values[at] += value;
  gradient.magnitudes[at] += magnitude;
}

class Backward {
 public:
  Backward(const v1::AttentionSpec& spec, const Inputs& inputs, const std::vector<std::byte>& d_out,
           const std::vector<std::byte>& d_lse, bool lse_without_sinks)
      : spec_(spec),
        inputs_(inputs),
        dims_(spec),
        lse_without_sinks_(lse_without_sinks),
        q_(ToDoubles(inputs.q, spec.dtype())),
        k_(ToDoubles(inputs.k, spec.dtype())),
        v_(ToDoubles(inputs.v, spec.dtype())),
        d_out_(ToDoubles(d_out, spec.dtype())),
        d_lse_(ToDoubles(d_lse, LseType(spec.dtype()))),
        sinks_(ToDoubles(inputs.sink_logits, v1::DTYPE_F32)),
        answer_(Attend(spec, inputs)) {}

  ReferenceGradients Run() {
    g_ = {Zeros(q_.size()), Zeros(k_.size()), Zeros(v_.size()), Zeros(spec_.q_heads()),
          answer_.largest_score};
    const Sees sees = MaskOf(spec_);
    const Distance distance = DistanceOf(spec_);
    const Extras extras(spec_, inputs_, distance);
    for (int64_t b = 0; b < spec_.batch(); ++b) {
      for (int64_t h = 0; h < spec_.q_heads(); ++h) {
        for (int64_t i = 0; i < spec_.q_len(); ++i) AddRow(b, h, i, sees, extras);
      }
    }
    return std::move(g_);
  }

 private:
  // A visible pair of the present query: P, and dP = dO V^T.
  struct Pair {
    int64_t key;
    double weight, d_weight, magnitude;
  };

  void AddRow(int64_t b, int64_t h, int64_t i, const Sees& sees, const Extras& extras) {
    const int64_t row = (b * spec_.q_heads() + h) * spec_.q_len() + i;
    const double lse = answer_.lse[row], bare_lse = answer_.lse_without_sinks[row];
    if (lse == -kInfinity) return;
    const std::vector<Pair> pairs = PairsOf(b, h, i, lse, sees, extras);
    const double d_lse = d_lse_.empty() ? 0 : d_lse_[row];
    double delta = 0, magnitude = std::abs(d_lse);
    const double* const d_out = &d_out_[dims_.out.At(b, h, i)];
    for (int64_t d = 0; d < dims_.value_dim; ++d) {
      delta += d_out[d] * answer_.out[dims_.out.At(b, h, i) + d];
      magnitude += std::abs(d_out[d]) * LeastNormal(spec_.dtype());
    }
    for (const Pair& pair : pairs) magnitude += pair.weight * pair.magnitude;
    if (!sinks_.empty()) {
      const double weight = std::exp(sinks_[h] - lse);
      const double of_lse = lse_without_sinks_ ? 0 : d_lse;
      Add(g_.d_sinks, h, weight * (of_lse - delta), weight * magnitude);
    }
    const double lse_weight = lse_without_sinks_ ? std::exp(lse - bare_lse) : 1;
    for (const Pair& pair : pairs) {
      AddPair(b, h, i, pair, pair.d_weight + d_lse * lse_weight - delta,
              pair.magnitude + magnitude * std::max(1., lse_weight));
    }
  }

  // Rounding of smaller results is not relative to them.
  static double LeastNormal(v1::DType dtype) { return dtype == v1::DTYPE_F16 ? 0x1p-14 : 0x1p-126; }

  std::vector<Pair> PairsOf(int64_t b, int64_t h, int64_t i, double lse, const Sees& sees,
                            const Extras& extras) const {
    std::vector<Pair> pairs;
    for (int64_t j = 0; j < spec_.kv_len(); ++j) {
      if (!sees(b, i, j)) continue;
      const double extra = extras.Of(b, h, i, j);
      if (extra == -kInfinity) continue;
      const double* const k = &k_[dims_.k.At(b, KvHead(h), j)];
      const double* const v = &v_[dims_.v.At(b, KvHead(h), j)];
      const double* const d_out = &d_out_[dims_.out.At(b, h, i)];
      const double score = dims_.scale * Dot(&q_[dims_.q.At(b, h, i)], k, spec_.head_dim());
      Pair pair = {j, std::exp(score + extra - lse), 0, 0};
      for (int64_t d = 0; d < dims_.value_dim; ++d) {
        pair.d_weight += d_out[d] * v[d];
        pair.magnitude += std::abs(d_out[d] * v[d]);
      }
      pairs.push_back(pair);
    }
    return pairs;
  }

  int64_t KvHead(int64_t h) const { return h / (spec_.q_heads() / spec_.kv_heads()); }

  // `d_score` is not yet weighted.
  void AddPair(int64_t b, int64_t h, int64_t i, const Pair& pair, double d_score,
               double magnitude) {
    const int64_t q = dims_.q.At(b, h, i), k = dims_.k.At(b, KvHead(h), pair.key);
    const int64_t v = dims_.v.At(b, KvHead(h), pair.key), out = dims_.out.At(b, h, i);
    for (int64_t d = 0; d < dims_.value_dim; ++d) {
      const double term = pair.weight * d_out_[out + d];
      Add(g_.d_v, v + d, term, std::abs(term));
    }
    const double factor = dims_.scale * pair.weight;
    for (int64_t d = 0; d < spec_.head_dim(); ++d) {
      Add(g_.d_q, q + d, factor * d_score * k_[k + d], std::abs(factor * k_[k + d]) * magnitude);
      Add(g_.d_k, k + d, factor * d_score * q_[q + d], std::abs(factor * q_[q + d]) * magnitude);
    }
  }

  const v1::AttentionSpec& spec_;
  const Inputs& inputs_;
  const Dims dims_;
  const bool lse_without_sinks_;
  const std::vector<double> q_, k_, v_, d_out_, d_lse_, sinks_;
  const Reference answer_;
  ReferenceGradients g_;
};

}  // namespace

ReferenceGradients AttendBackward(const v1::AttentionSpec& spec, const Inputs& inputs,
                                  const std::vector<std::byte>& d_out,
                                  const std::vector<std::byte>& d_lse, bool lse_without_sinks) {
  return Backward(spec, inputs, d_out, d_lse, lse_without_sinks).Run();
}

std::string CompareGradient(const char* name, const v1::AttentionSpec& spec,
                            const ReferenceGradients& reference, const ReferenceGradient& expected,
                            std::span<const std::byte> actual, v1::DType dtype) {
  const std::vector<double> numbers = ToDoubles(actual, dtype);
  if (numbers.size() != expected.values.size()) return absl::StrFormat("%s has another size", name);
  const double wide = UnitRoundoff(LseType(spec.dtype()));
  // `out`, which the pass is given, is rounded to the type of the numbers, and so may be the
  // weights that it was made of.
  const double of_terms =
      2 * UnitRoundoff(spec.dtype()) + 2 * ExpErrorFor(spec.dtype()) +
      wide * (std::sqrt(spec.kv_len() + spec.q_len()) + 16 * (1 + reference.largest_score));
  for (size_t i = 0; i < numbers.size(); ++i) {
    const double tolerance = of_terms * expected.magnitudes[i] +
                             UnitRoundoff(dtype) * std::abs(expected.values[i]) + 1e-37;
    const double error = std::abs(numbers[i] - expected.values[i]);
    if (error <= tolerance) continue;
    if (dtype == v1::DTYPE_F16 && error < 0x1p-24) continue;  // the least subnormal number
    return absl::StrFormat("%s[%d] is %.9g, not %.9g: off by %.3g, tolerance %.3g; ", name, i,
                           numbers[i], expected.values[i], error, tolerance);
  }
  return "";
}

}  // namespace ringserve::test
