#include "worker/attention/score_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "worker/attention/widen.h"

namespace ringserve {
namespace {

constexpr int kLanes = 16;
using Words = uint32_t __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
using Floats = float __attribute__((vector_size(4 * kLanes)));

// One step of a transpose: swaps, between the rows i and i + kDistance, the halves of every run of
// 2 * kDistance words that lie off the diagonal.
template <int kDistance>
RINGSERVE_INLINE void SwapOffDiagonal(Words* rows) {
  for (int i = 0; i < kLanes; ++i) {
    if (i & kDistance) continue;
    const Words a = rows[i], b = rows[i + kDistance];
    if constexpr (kDistance == 1) {
      rows[i] =
          __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
      rows[i + 1] =
          __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    } else if constexpr (kDistance == 2) {
      rows[i] =
          __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      rows[i + 2] =
          __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    } else if constexpr (kDistance == 4) {
      rows[i] =
          __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
      rows[i + 4] =
          __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    } else {
      rows[i] =
          __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
      rows[i + 8] = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28,
                                            29, 30, 31);
    }
  }
}

RINGSERVE_INLINE void Transpose(Words* rows) {
  SwapOffDiagonal<1>(rows);
  SwapOffDiagonal<2>(rows);
  SwapOffDiagonal<4>(rows);
  SwapOffDiagonal<8>(rows);
}

// 16 words of a row, be they pairs of numbers or wide numbers.
RINGSERVE_INLINE void Load(Words& words, const BFloat16Bits* numbers, const BFloat16Bits*) {
  std::memcpy(&words, numbers, sizeof words);
}
template <typename Number>
RINGSERVE_INLINE void Load(Words& words, const Number* numbers, const float*) {
  float wide[kLanes];
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) wide[i] = Widen(numbers[i]);
  std::memcpy(&words, wide, sizeof words);
}

template <typename Packed, typename Number>
RINGSERVE_INLINE void Keys(Packed* panel, const Number* keys, int64_t stride, int64_t rows,
                           int64_t dim) {
  constexpr int64_t kPerWord = sizeof(uint32_t) / sizeof(Packed);
  constexpr int64_t kNumbers = kLanes * kPerWord;
  uint32_t* const words = reinterpret_cast<uint32_t*>(panel);
  const int64_t words_deep = (dim + kPerWord - 1) / kPerWord;
  Words block[kLanes];
  for (int64_t d = 0; d < words_deep; d += kLanes) {
    const int64_t left = dim - d * kPerWord;
    for (int64_t first = 0; first < kPanelColumns; first += kLanes) {
      for (int64_t i = 0; i < kLanes; ++i) {
        const Number* key = keys + (first + i) * stride + d * kPerWord;
        if (first + i >= rows) {
          block[i] = Words{};
        } else if (left >= kNumbers) {
          Load(block[i], key, panel);
        } else {
          Number tail[kNumbers] = {};
          std::copy_n(key, left, tail);
          Load(block[i], tail, panel);
        }
      }
      Transpose(block);
      for (int64_t i = 0; i < std::min<int64_t>(kLanes, words_deep - d); ++i) {
        std::memcpy(words + (d + i) * kPanelColumns + first, &block[i], sizeof block[i]);
      }
    }
  }
}

RINGSERVE_INLINE void Values(BFloat16Bits* panel, const BFloat16Bits* values, int64_t stride,
                             int64_t rows, int64_t columns, int64_t width) {
  uint32_t* const words = reinterpret_cast<uint32_t*>(panel);
  std::fill_n(words, kPanelColumns / 2 * width, 0);
  for (int64_t row = 0; row + 1 < rows; row += 2) {
    const BFloat16Bits* const even = values + row * stride;
    const BFloat16Bits* const odd = even + stride;
    uint32_t* const into = words + row / 2 * width;
    for (int64_t i = 0; i < columns; ++i) {
      into[i] = static_cast<uint32_t>(even[i]) | static_cast<uint32_t>(odd[i]) << 16;
    }
  }
  if (rows % 2 == 0) return;
  const BFloat16Bits* const last = values + (rows - 1) * stride;
  for (int64_t i = 0; i < columns; ++i)
    words[rows / 2 * width + i] = static_cast<uint32_t>(last[i]);
}

template <typename Number>
RINGSERVE_INLINE void Values(float* panel, const Number* values, int64_t stride, int64_t rows,
                             int64_t columns, int64_t width) {
  for (int64_t row = 0; row < kPanelColumns; ++row) {
    float* const into = panel + row * width;
    const int64_t filled = row < rows ? columns : 0;
#pragma omp simd
    for (int64_t i = 0; i < filled; ++i) into[i] = Widen(values[row * stride + i]);
    std::fill(into + filled, into + width, 0.f);
  }
}

// Four rows at once, so that what they share is read once.
template <typename Number>
RINGSERVE_INLINE void Dots(float* results, const float* row, const Number* rows, int64_t stride,
                           int64_t n, int64_t dim) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4, rows += 4 * stride) {
    float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
    for (int64_t j = 0; j < dim; ++j) {
      a += row[j] * Widen(rows[j]);
      b += row[j] * Widen(rows[j + stride]);
      c += row[j] * Widen(rows[j + 2 * stride]);
      d += row[j] * Widen(rows[j + 3 * stride]);
    }
    results[i] = a, results[i + 1] = b, results[i + 2] = c, results[i + 3] = d;
  }
  for (; i < n; ++i, rows += stride) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < dim; ++j) sum += row[j] * Widen(rows[j]);
    results[i] = sum;
  }
}

template <typename Number>
RINGSERVE_INLINE void WeightedRows(float* sums, const float* weights, const Number* rows,
                                   int64_t stride, int64_t n, int64_t columns) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4, rows += 4 * stride) {
    const float a = weights[i], b = weights[i + 1], c = weights[i + 2], d = weights[i + 3];
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) {
      sums[j] += (a * Widen(rows[j]) + b * Widen(rows[j + stride])) +
                 (c * Widen(rows[j + 2 * stride]) + d * Widen(rows[j + 3 * stride]));
    }
  }
  for (; i < n; ++i, rows += stride) {
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) sums[j] += weights[i] * Widen(rows[j]);
  }
}

// e^x = 2^n e^r with |r| <= log(2) / 2; the polynomial and the two parts of log(2) are those of
// Cephes' expf. A product makes 2^n, because NaN must survive it. A mask instead of a condition,
// which compilers would turn into a branch.
RINGSERVE_INLINE float Exp(float x) {
  constexpr float kRound = 0x1.8p23f;  // plus a number, minus itself: the nearest integer
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1;
  const uint32_t power = (std::bit_cast<uint32_t>(shifted) + 127) << 23;
  const uint32_t kept = -static_cast<uint32_t>(!(x < -87));
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p * std::bit_cast<float>(power)) & kept);
}

// As many sums side by side on every processor, and where a sanitizer keeps compilers from vectors:
// their rounding grows with what each adds up.
RINGSERVE_INLINE float Sum(const float* row, int64_t n) {
  Floats sums = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Floats floats;
    std::memcpy(&floats, row + i, sizeof floats);
    sums += floats;
  }
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  for (; i < n; ++i) sum += row[i];
  return sum;
}

RINGSERVE_INLINE float WeighRow(float* row, int64_t n, float scale, float most) {
  // In a loop of its own, or it would be fused with the subtraction, unrounded. `most` is the
  // largest of these products, rounded: what rounding took from it is past fp32's exponents where
  // scores reach 2^32, and would make its weight 0 or infinite.
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] *= scale;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] = Exp(row[i] - most);
  return Sum(row, n);
}

template <typename Wide>
RINGSERVE_INLINE void Distances(Wide* row, int64_t n, Wide scale, float slope, int64_t distance) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    row[i] = row[i] * scale - slope * std::abs(static_cast<Wide>(distance - i));
  }
}

template <typename Wide>
RINGSERVE_INLINE void HideRow(Wide* row, const uint8_t* visible, int64_t n, Wide scale) {
  constexpr Wide kHidden = -std::numeric_limits<Wide>::infinity();
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] = visible[i] ? row[i] * scale : kHidden;
}

template <typename Wide, typename Number>
RINGSERVE_INLINE void Bias(Wide* row, const Number* bias, int64_t n, Wide scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] = row[i] * scale + Widen(bias[i]);
}

// To the nearest, ties to even; NaN stays NaN, as those of arithmetic are quiet.
RINGSERVE_INLINE BFloat16Bits Narrow(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<BFloat16Bits>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

RINGSERVE_CLONES void LayOutKeys(BFloat16Bits* panel, const BFloat16Bits* keys, int64_t stride,
                                 int64_t rows, int64_t dim) {
  Keys(panel, keys, stride, rows, dim);
}
RINGSERVE_CLONES void LayOutKeys(float* panel, const BFloat16Bits* keys, int64_t stride,
                                 int64_t rows, int64_t dim) {
  Keys(panel, keys, stride, rows, dim);
}
RINGSERVE_CLONES void LayOutKeys(float* panel, const HalfBits* keys, int64_t stride, int64_t rows,
                                 int64_t dim) {
  Keys(panel, keys, stride, rows, dim);
}
RINGSERVE_CLONES void LayOutKeys(float* panel, const float* keys, int64_t stride, int64_t rows,
                                 int64_t dim) {
  Keys(panel, keys, stride, rows, dim);
}

RINGSERVE_CLONES void LayOutValues(BFloat16Bits* panel, const BFloat16Bits* values, int64_t stride,
                                   int64_t rows, int64_t columns, int64_t width) {
  Values(panel, values, stride, rows, columns, width);
}
RINGSERVE_CLONES void LayOutValues(float* panel, const BFloat16Bits* values, int64_t stride,
                                   int64_t rows, int64_t columns, int64_t width) {
  Values(panel, values, stride, rows, columns, width);
}
RINGSERVE_CLONES void LayOutValues(float* panel, const HalfBits* values, int64_t stride,
                                   int64_t rows, int64_t columns, int64_t width) {
  Values(panel, values, stride, rows, columns, width);
}
RINGSERVE_CLONES void LayOutValues(float* panel, const float* values, int64_t stride, int64_t rows,
                                   int64_t columns, int64_t width) {
  Values(panel, values, stride, rows, columns, width);
}

RINGSERVE_CLONES void MultiplyRows(float* results, const float* row, const float* rows,
                                   int64_t stride, int64_t n, int64_t dim) {
  Dots(results, row, rows, stride, n, dim);
}
RINGSERVE_CLONES void MultiplyRows(float* results, const float* row, const BFloat16Bits* rows,
                                   int64_t stride, int64_t n, int64_t dim) {
  Dots(results, row, rows, stride, n, dim);
}
RINGSERVE_CLONES void MultiplyRows(float* results, const float* row, const HalfBits* rows,
                                   int64_t stride, int64_t n, int64_t dim) {
  Dots(results, row, rows, stride, n, dim);
}

RINGSERVE_CLONES void AddRows(float* sums, const float* weights, const float* rows, int64_t stride,
                              int64_t n, int64_t columns) {
  WeightedRows(sums, weights, rows, stride, n, columns);
}
RINGSERVE_CLONES void AddRows(float* sums, const float* weights, const BFloat16Bits* rows,
                              int64_t stride, int64_t n, int64_t columns) {
  WeightedRows(sums, weights, rows, stride, n, columns);
}
RINGSERVE_CLONES void AddRows(float* sums, const float* weights, const HalfBits* rows,
                              int64_t stride, int64_t n, int64_t columns) {
  WeightedRows(sums, weights, rows, stride, n, columns);
}

RINGSERVE_CLONES float Largest(const float* scores, int64_t n) {
  float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = scores[i] > largest ? scores[i] : largest;
  return largest;
}

RINGSERVE_CLONES float Weigh(float* row, int64_t n, float scale, float most) {
  return WeighRow(row, n, scale, most);
}

// In two loops: of one, compilers make vectors half as wide.
RINGSERVE_CLONES float Weigh(BFloat16Bits* weights, float* row, int64_t n, float scale,
                             float most) {
  const float sum = WeighRow(row, n, scale, most);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) weights[i] = Narrow(row[i]);
  return sum;
}

RINGSERVE_CLONES void AddDistances(float* row, int64_t n, float scale, float slope,
                                   int64_t distance) {
  Distances(row, n, scale, slope, distance);
}
RINGSERVE_CLONES void AddDistances(double* row, int64_t n, double scale, float slope,
                                   int64_t distance) {
  Distances(row, n, scale, slope, distance);
}

RINGSERVE_CLONES void AddBias(float* row, const float* bias, int64_t n, float scale) {
  Bias(row, bias, n, scale);
}
RINGSERVE_CLONES void AddBias(float* row, const BFloat16Bits* bias, int64_t n, float scale) {
  Bias(row, bias, n, scale);
}
RINGSERVE_CLONES void AddBias(float* row, const HalfBits* bias, int64_t n, float scale) {
  Bias(row, bias, n, scale);
}
RINGSERVE_CLONES void AddBias(double* row, const double* bias, int64_t n, double scale) {
  Bias(row, bias, n, scale);
}

RINGSERVE_CLONES void Hide(float* row, const uint8_t* visible, int64_t n, float scale) {
  HideRow(row, visible, n, scale);
}
RINGSERVE_CLONES void Hide(double* row, const uint8_t* visible, int64_t n, double scale) {
  HideRow(row, visible, n, scale);
}

RINGSERVE_CLONES void ScaleRow(float* row, const float* from, int64_t n, float factor) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] = factor * from[i];
}

}  // namespace ringserve
