#include "tests/support/oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/support/elements.h"
#include "tests/support/random.h"

namespace ringserve::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Where element [b, h, s, 0] of a dense tensor is.
struct Strides {
  bool head_major = true;
  int64_t heads = 0, rows = 0, dim = 0;

  int64_t At(int64_t b, int64_t h, int64_t s) const {
    return (head_major ? (b * heads + h) * rows + s : (b * rows + s) * heads + h) * dim;
  }
};

struct Dims {
  explicit Dims(const v1::AttentionSpec& spec)
      : value_dim(spec.value_dim() != 0 ? spec.value_dim() : spec.head_dim()),
        scale(spec.has_scale() ? spec.scale()
                               : 1 / std::sqrt(static_cast<double>(spec.head_dim()))) {
    const bool head_major = spec.tensor_layout() != v1::TENSOR_LAYOUT_BSHD;
    q = {head_major, spec.q_heads(), spec.q_len(), spec.head_dim()};
    k = {head_major, spec.kv_heads(), spec.kv_len(), spec.head_dim()};
    v = {head_major, spec.kv_heads(), spec.kv_len(), value_dim};
    out = {head_major, spec.q_heads(), spec.q_len(), value_dim};
  }

  int64_t value_dim;
  double scale;
  Strides q, k, v, out;
};

std::vector<std::byte> RandomTensor(Random& random, int64_t elements, double gain,
                                    v1::DType dtype) {
  std::vector<double> values(elements);
  for (double& value : values) value = gain * random.Normal();
  return FromDoubles(values, dtype);
}

double Dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// The largest length of a row.
double LargestNorm(const std::vector<double>& values, int64_t dim) {
  double largest = 0;
  for (size_t i = 0; i < values.size(); i += dim) {
    largest = std::max(largest, Dot(&values[i], &values[i], dim));
  }
  return std::sqrt(largest);
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

v1::DType LseType(v1::DType dtype) {
  return dtype == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32;
}

// LibTorch's own: of the narrow types it takes an exp that is good to 14 bits, and too small even
// where it stands for 1.
double ExpErrorFor(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F64:
      return 0x1p-51;
    case v1::DTYPE_F32:
      return 0x1p-20;
    default:
      return 0x1p-13;
  }
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
  return inputs;
}

Reference Attend(const v1::AttentionSpec& spec, const Inputs& inputs) {
  return Attend(spec, inputs, MaskOf(spec));
}

Reference Attend(const v1::AttentionSpec& spec, const Inputs& inputs, const Sees& sees) {
  const Dims dims(spec);
  const std::vector<double> q = ToDoubles(inputs.q, spec.dtype());
  const std::vector<double> k = ToDoubles(inputs.k, spec.dtype());
  const std::vector<double> v = ToDoubles(inputs.v, spec.dtype());
  const int64_t queries_per_key_head = spec.q_heads() / spec.kv_heads();

  Reference reference;
  reference.out.resize(spec.batch() * spec.q_heads() * spec.q_len() * dims.value_dim);
  reference.lse.reserve(spec.batch() * spec.q_heads() * spec.q_len());
  std::vector<double> scores;
  std::vector<const double*> values;
  for (int64_t b = 0; b < spec.batch(); ++b) {
    for (int64_t h = 0; h < spec.q_heads(); ++h) {
      for (int64_t i = 0; i < spec.q_len(); ++i) {
        scores.clear();
        values.clear();
        for (int64_t j = 0; j < spec.kv_len(); ++j) {
          if (!sees(b, i, j)) continue;
          const int64_t kv_head = h / queries_per_key_head;
          scores.push_back(dims.scale * Dot(&q[dims.q.At(b, h, i)], &k[dims.k.At(b, kv_head, j)],
                                            spec.head_dim()));
          values.push_back(&v[dims.v.At(b, kv_head, j)]);
        }
        reference.lse.push_back(
            AttendRow(scores, values, dims.value_dim, &reference.out[dims.out.At(b, h, i)]));
      }
    }
  }
  for (const double value : v) {
    reference.largest_value = std::max(reference.largest_value, std::abs(value));
  }
  // Cauchy and Schwarz: no sum of products is larger.
  reference.largest_score =
      std::abs(dims.scale) * LargestNorm(q, spec.head_dim()) * LargestNorm(k, spec.head_dim());
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
