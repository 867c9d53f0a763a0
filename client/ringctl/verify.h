// Is an answer right? Rows of it are computed again, here, in fp64, and compared. Independent of
// the service's code; costs about rows x keys x (D + Dv) multiplications.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "client/ringctl/reference_attention.h"
#include "ringserve/client.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// How many rows of each batch row and head are compared.
inline constexpr int64_t kMinVerifiedRows = 64;
inline constexpr int64_t kMaxVerifiedRows = 256;

struct Answer {
  std::span<const std::byte> out;
  std::span<const std::byte> lse;  // empty: not compared
  bool lse_without_sinks = false;  // see AttentionOptions
};

// A number of the answer beside the right one.
struct Deviation {
  RowId row;
  int64_t element = 0;  // of out; 0 for lse
  double got = 0, expected = 0, tolerance = 0;

  // |got - expected|; NaN where got is NaN.
  double error() const;
  // How many times the tolerance: above 1 is wrong; infinite where got is NaN.
  double excess() const;
};

struct Verification {
  int64_t rows = 0;       // compared, over all batch rows and heads
  int64_t undefined = 0;  // left out: their inputs are not finite
  // The worst of out and of lse: the one furthest beyond its tolerance. Nothing: none was compared.
  std::optional<Deviation> out, lse;
  // Those with the largest errors.
  std::optional<Deviation> largest_out, largest_lse;

  // False: no number of out has a right value that it could be compared with, so that nothing is
  // known of the answer.
  bool compared() const { return out.has_value(); }
  // Whatever was compared is right.
  bool ok() const;
};

struct Tolerance {
  struct {
    double relative, spread, magnitude, floor;  // a, b, c, and the smallest numbers' rounding
    double score_relative, score_magnitude;     // d, e
  } out;
  struct {
    double absolute, score_absolute, score_relative, sum;  // f, g, h, u
  } lse;
};

// What may differ between two right answers: rounding. Each number has its own tolerance, from the
// fp64 values and the type's precision:
//
//   out  a |ref| + b spread + c magnitude + (d |ref| + e magnitude) s      see ReferenceRow
//   lse  f + (g + h |ref|) s + u sqrt(keys seen)
//   s    max(1, largest |scale| |q| |k_j| / 16)
//
// a, b, c, f: what a narrow type rounds beside the answer itself; d, e, g, h: fp32 (F64: fp64)
// arithmetic, which rounds a score by its own size; u: its rounding of the sum. Scaling v scales
// the tolerance of out.
Tolerance ToleranceOf(v1::DType dtype);

// The queries to compare of one batch row and head, ascending: the first, the last, both sides of
// every segment boundary of `layout`, and others by chance until there are kMinVerifiedRows. Beyond
// kMaxVerifiedRows the boundaries, too, are sampled. The same seed gives the same queries.
std::vector<int64_t> QueriesToVerify(int64_t q_len, const v1::SequenceLayout& layout, int64_t batch,
                                     int64_t head, uint64_t seed);

// `rows` of the answer against what is right there; `right` has as many entries.
Verification CompareRows(const v1::AttentionSpec& spec, const Answer& answer,
                         std::span<const RowId> rows, std::span<const ReferenceRow> right);

// `threads`: 0 takes all cores. Inputs and answer have the sizes that `spec` says.
Verification Verify(const v1::AttentionSpec& spec, const v1::Layout& layout,
                    const AttendInputs& inputs, const Answer& answer, uint64_t seed = 0,
                    int threads = 0);

}  // namespace ringserve
