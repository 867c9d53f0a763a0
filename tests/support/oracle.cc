#include "tests/support/oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/support/elements.h"
#include "tests/support/oracle_numbers.h"
#include "tests/support/random.h"

namespace ringserve::test {
namespace {

std::vector<std::byte> RandomTensor(Random& random, int64_t elements, double gain,
                                    v1::DType dtype) {
  std::vector<double> values(elements);
  for (double& value : values) value = gain * random.Normal();
  return FromDoubles(values, dtype);
}

// Some rows hide every key.
std::vector<std::byte> RandomBias(Random& random, const v1::AttentionSpec& spec) {
  const v1::Bias& bias = spec.bias();
  const int64_t rows =
      (bias.per_batch() ? spec.batch() : 1) * (bias.per_head() ? spec.q_heads() : 1) * spec.q_len();
  std::vector<double> values;
  values.reserve(rows * spec.kv_len());
  for (int64_t row = 0; row < rows; ++row) {
    const double hidden = random.Pick({0.0, 0.0, 0.1, 0.5, 1.0});
    for (int64_t k = 0; k < spec.kv_len(); ++k)
      values.push_back(random.Chance(hidden) ? -kInfinity : 2 * random.Normal());
  }
  if (!bias.boolean()) return FromDoubles(values, spec.dtype());
  std::vector<std::byte> bytes;
  bytes.reserve(values.size());
  for (const double value : values) bytes.push_back(std::byte{value != -kInfinity});
  return bytes;
}

// One query: its scores' log-sum-exp, and the weighted mean of the values into `out`.
double AttendRow(const std::vector<double>& scores, const std::vector<const double*>& values,
                 int64_t dim, double* out) {
  if (scores.empty()) return -kInfinity;
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - largest);
  for (size_t j = 0; j < scores.size(); ++j) {
    const double weight = std::exp(scores[j] - largest) / sum;
    for (int64_t d = 0; d < dim; ++d) out[d] += weight * values[j][d];
  }
  return largest + std::log(sum);
}

double ErrorOf(double expected, double actual) {
  if (expected == actual || (std::isnan(expected) && std::isnan(actual))) return 0;
  const double error = std::abs(expected - actual);
  return std::isfinite(error) ? error : kInfinity;
}

double LargestError(const std::vector<double>& expected, std::span<const std::byte> bytes,
                    v1::DType dtype, size_t* where) {
  const std::vector<double> actual = ToDoubles(bytes, dtype);
  if (actual.size() != expected.size()) return kInfinity;
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = ErrorOf(expected[i], actual[i]);
    if (error > largest) {
      largest = error;
      *where = i;
    }
  }
  return largest;
}

std::string Describe(const char* name, const std::vector<double>& expected,
                     std::span<const std::byte> bytes, v1::DType dtype, double tolerance) {
  size_t where = 0;
  const double error = LargestError(expected, bytes, dtype, &where);
  if (error <= tolerance) return "";
  const std::vector<double> actual = ToDoubles(bytes, dtype);
  if (actual.size() != expected.size()) {
    return absl::StrCat(name, " has ", actual.size(), " elements, not ", expected.size(), "; ");
  }
  return absl::StrFormat("%s[%d] is %.9g, not %.9g: off by %.3g, tolerance %.3g; ", name, where,
                         actual[where], expected[where], error, tolerance);
}

}  // namespace

Inputs RandomInputs(const v1::AttentionSpec& spec, uint64_t seed, double gain) {
  Random random(seed);
  const int64_t q_rows = spec.batch() * spec.q_heads() * spec.q_len();
  const int64_t kv_rows = spec.batch() * spec.kv_heads() * spec.kv_len();
  Inputs inputs;
  inputs.q = RandomTensor(random, q_rows * spec.head_dim(), gain, spec.dtype());
  inputs.k = RandomTensor(random, kv_rows * spec.head_dim(), 1, spec.dtype());
  inputs.v = RandomTensor(random, kv_rows * Dims(spec).value_dim, 1, spec.dtype());
  if (spec.has_bias()) inputs.bias = RandomBias(random, spec);
  std::vector<double> per_head(spec.q_heads());
  if (spec.alibi_slopes()) {
    for (double& slope : per_head) slope = random.Pick({0.0, 0.5, 0.125, 1.0 / 256, -0.01});
    inputs.alibi_slopes = FromDoubles(per_head, v1::DTYPE_F32);
  }
  if (spec.sink_logits()) {
    for (double& logit : per_head) logit = random.Chance(0.1) ? -kInfinity : 2 * random.Normal();
    inputs.sink_logits = FromDoubles(per_head, v1::DTYPE_F32);
  }
  return inputs;
}

Reference Attend(const v1::AttentionSpec& spec, const Inputs& inputs) {
  return Attend(spec, inputs, MaskOf(spec));
}

Reference Attend(const v1::AttentionSpec& spec, const Inputs& inputs, const Sees& sees,
                 const Distance& distance) {
  const Dims dims(spec);
  const std::vector<double> q = ToDoubles(inputs.q, spec.dtype());
  const std::vector<double> k = ToDoubles(inputs.k, spec.dtype());
  const std::vector<double> v = ToDoubles(inputs.v, spec.dtype());
  const int64_t queries_per_key_head = spec.q_heads() / spec.kv_heads();
  const Distance own_distance = distance ? distance : DistanceOf(spec);
  const Extras extras(spec, inputs, own_distance);

  Reference reference;
  reference.out.resize(spec.batch() * spec.q_heads() * spec.q_len() * dims.value_dim);
  std::vector<double> scores;
  std::vector<const double*> values;
  double largest_extra = 0;
  for (int64_t b = 0; b < spec.batch(); ++b) {
    for (int64_t h = 0; h < spec.q_heads(); ++h) {
      for (int64_t i = 0; i < spec.q_len(); ++i) {
        scores.clear();
        values.clear();
        for (int64_t j = 0; j < spec.kv_len(); ++j) {
          if (!sees(b, i, j)) continue;
          const double extra = extras.Of(b, h, i, j);
          if (extra == -kInfinity) continue;
          largest_extra = std::max(largest_extra, std::abs(extra));
          const int64_t kv_head = h / queries_per_key_head;
          scores.push_back(dims.scale * Dot(&q[dims.q.At(b, h, i)], &k[dims.k.At(b, kv_head, j)],
                                            spec.head_dim()) +
                           extra);
          values.push_back(&v[dims.v.At(b, kv_head, j)]);
        }
        double* out = &reference.out[dims.out.At(b, h, i)];
        const double lse = AttendRow(scores, values, dims.value_dim, out);
        reference.lse_without_sinks.push_back(lse);
        reference.lse.push_back(extras.AddSink(h, lse, {out, static_cast<size_t>(dims.value_dim)}));
      }
    }
  }
  for (const double value : v) {
    reference.largest_value = std::max(reference.largest_value, std::abs(value));
  }
  // Cauchy and Schwarz: no sum of products is larger.
  reference.largest_score =
      std::abs(dims.scale) * LargestNorm(q, spec.head_dim()) * LargestNorm(k, spec.head_dim()) +
      largest_extra + extras.LargestSink();
  return reference;
}

Errors ToleranceFor(const v1::AttentionSpec& spec, const Reference& reference) {
  const double roundoff = UnitRoundoff(LseType(spec.dtype()));
  const double of_scores =
      ExpErrorFor(spec.dtype()) +
      roundoff * (std::sqrt(spec.kv_len()) + 8 * (1 + reference.largest_score));
  double largest_lse = 0;
  for (const double lse : reference.lse) {
    if (std::isfinite(lse)) largest_lse = std::max(largest_lse, std::abs(lse));
  }
  // Narrow types: the weights are rounded before they meet the values, then each step's result.
  const double of_out = 2 * UnitRoundoff(spec.dtype()) + 2 * of_scores;
  return {.out = reference.largest_value * of_out,
          .lse = of_scores + 2 * roundoff * (1 + largest_lse)};
}

Errors ErrorsOf(const v1::AttentionSpec& spec, const Reference& reference,
                std::span<const std::byte> out, std::span<const std::byte> lse) {
  size_t where = 0;
  return {.out = LargestError(reference.out, out, spec.dtype(), &where),
          .lse = LargestError(reference.lse, lse, LseType(spec.dtype()), &where)};
}

std::string Compare(const v1::AttentionSpec& spec, const Reference& reference,
                    std::span<const std::byte> out, std::span<const std::byte> lse) {
  const Errors tolerance = ToleranceFor(spec, reference);
  std::string wrong = Describe("out", reference.out, out, spec.dtype(), tolerance.out);
  if (!lse.empty()) {
    wrong += Describe("lse", reference.lse, lse, LseType(spec.dtype()), tolerance.lse);
  }
  return wrong;
}

}  // namespace ringserve::test
