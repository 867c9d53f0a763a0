#include "client/ringctl/load_case.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "client/ringctl/format.h"

namespace ringserve {
namespace {

constexpr int kMostWorkers = 4;  // whose segments' boundaries are checked in any case
constexpr double kLongest = 4096;
constexpr double kMostWork = 1.5e9;  // multiplications of q k^T and p v, of one request

// The nearest of those numbers of type f16 that are no further from 0.
uint16_t TowardZeroF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const int exponent = static_cast<int>(bits >> 23 & 0xff) - 127 + 15;
  if (exponent <= 0) return static_cast<uint16_t>(sign);
  return static_cast<uint16_t>(sign | exponent << 10 | (bits >> 13 & 0x3ff));
}

template <typename T>
void Put(T value, std::byte*& at) {
  std::memcpy(at, &value, sizeof(value));
  at += sizeof(value);
}

// Segments as `auto` may cut them for 1 to kMostWorkers workers.
v1::SequenceLayout LikelySegments(int64_t length) {
  v1::SequenceLayout layout;
  v1::RowLayout* row = layout.add_rows();
  for (int64_t workers = 1; workers <= kMostWorkers; ++workers) {
    v1::RankSegments* rank = row->add_ranks();
    const int64_t pieces = 2 * workers;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      v1::Segment* segment = rank->add_segments();
      segment->set_begin(piece * length / pieces);
      segment->set_end((piece + 1) * length / pieces);
    }
  }
  return layout;
}

double WorkOf(const v1::AttentionSpec& spec) {
  return static_cast<double>(spec.batch() * spec.q_heads()) * static_cast<double>(spec.q_len()) *
         static_cast<double>(spec.kv_len()) *
         static_cast<double>(spec.head_dim() + spec.value_dim());
}

class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}

  template <typename T>
  T OneOf(std::initializer_list<T> choices) {
    return choices.begin()[std::uniform_int_distribution<size_t>(0, choices.size() - 1)(random_)];
  }
  // 1 to kLongest, even in the logarithm.
  int64_t Length() {
    return std::llround(std::exp(std::uniform_real_distribution<>(0, std::log(kLongest))(random_)));
  }

 private:
  std::mt19937_64 random_;
};

v1::AttentionSpec MixedSpec(Dice& dice) {
  v1::AttentionSpec spec;
  spec.set_batch(dice.OneOf({1, 1, 1, 3}));
  spec.set_kv_heads(dice.OneOf({1, 2}));
  spec.set_q_heads(spec.kv_heads() * dice.OneOf({1, 2, 4}));
  spec.set_q_len(dice.Length());
  spec.set_kv_len(dice.OneOf({true, true, false}) ? spec.q_len() : dice.Length());
  spec.set_head_dim(dice.OneOf({32, 64, 80, 128}));
  spec.set_value_dim(dice.OneOf({true, true, false}) ? spec.head_dim() : 96);
  spec.set_dtype(dice.OneOf({v1::DTYPE_F32, v1::DTYPE_F64, v1::DTYPE_BF16, v1::DTYPE_F16}));
  spec.set_tensor_layout(dice.OneOf({v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}));
  switch (dice.OneOf({0, 1, 1, 2})) {
    case 1:
      spec.add_masks()->set_causal(true);
      break;
    case 2:
      spec.add_masks()->set_causal(true);
      spec.mutable_masks(0)->set_bottom_right(true);
      break;
  }
  // What is left is small enough to be answered many times a second.
  while (WorkOf(spec) > kMostWork) {
    spec.set_q_len((spec.q_len() + 1) / 2);
    spec.set_kv_len((spec.kv_len() + 1) / 2);
  }
  return spec;
}

}  // namespace

void FillNormal(v1::DType dtype, std::mt19937_64& random, std::span<std::byte> tensor) {
  std::normal_distribution<double> normal;
  for (std::byte *at = tensor.data(), *end = at + tensor.size(); at < end;) {
    const double value = normal(random);
    switch (dtype) {
      case v1::DTYPE_F64:
        Put(value, at);
        break;
      case v1::DTYPE_BF16:
        Put(static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(value)) >> 16), at);
        break;
      case v1::DTYPE_F16:
        Put(TowardZeroF16(static_cast<float>(value)), at);
        break;
      default:
        Put(static_cast<float>(value), at);
    }
  }
}

std::vector<v1::AttendHeader> MixedHeaders(int count, int workers, uint64_t seed) {
  Dice dice(seed);
  std::vector<v1::AttendHeader> headers(count);
  for (int i = 0; i < count; ++i) {
    *headers[i].mutable_spec() = MixedSpec(dice);
    headers[i].mutable_options()->set_return_lse(true);
    headers[i].mutable_options()->set_workers(i % 2 == 0 ? workers : 0);
  }
  return headers;
}

absl::Status CheckMemory(std::span<const v1::AttendHeader> headers, int concurrency,
                         uint64_t available_bytes) {
  absl::uint128 inputs = 0, largest_answer = 0;
  for (const v1::AttendHeader& header : headers) {
    const absl::StatusOr<TensorBytes> bytes = BytesOf(header.spec());
    if (!bytes.ok()) return bytes.status();
    inputs += bytes->q + bytes->k + bytes->v;
    largest_answer = std::max<absl::uint128>(largest_answer, bytes->out + bytes->lse);
  }
  const absl::uint128 needed = inputs + largest_answer * static_cast<uint64_t>(concurrency);
  if (available_bytes == 0 || needed <= available_bytes) return absl::OkStatus();
  const absl::uint128 most = std::numeric_limits<uint64_t>::max();
  return absl::InvalidArgumentError(
      absl::StrCat("the tensors of these requests take ",
                   BytesText(static_cast<uint64_t>(std::min(needed, most))), " with --concurrency ",
                   concurrency, ": this machine has ", BytesText(available_bytes), " available"));
}

absl::StatusOr<LoadCase> MakeLoadCase(const v1::AttendHeader& header, uint64_t seed,
                                      const AttendInputs& extras) {
  const absl::StatusOr<TensorBytes> bytes = BytesOf(header.spec());
  if (!bytes.ok()) return bytes.status();
  LoadCase load;
  load.header = header;
  load.extras = extras;
  std::mt19937_64 random(seed);
  for (const auto& [tensor, size] :
       {std::pair{&load.q, bytes->q}, {&load.k, bytes->k}, {&load.v, bytes->v}}) {
    tensor->resize(size);
    FillNormal(header.spec().dtype(), random, *tensor);
  }
  return load;
}

bool LoadCase::comparable() const {
  return std::any_of(right.begin(), right.end(), [](const ReferenceRow& row) {
    return !row.undefined && std::any_of(row.out.begin(), row.out.end(),
                                         [](double value) { return std::isfinite(value); });
  });
}

void AddRightRows(LoadCase& load, uint64_t seed) {
  const v1::AttentionSpec& spec = load.header.spec();
  const v1::SequenceLayout segments = LikelySegments(spec.q_len());
  const int64_t group = spec.q_heads() / spec.kv_heads();
  for (int64_t batch = 0; batch < spec.batch(); ++batch) {
    for (int64_t kv_head = 0; kv_head < spec.kv_heads(); ++kv_head) {
      std::vector<RowId> rows;
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (const int64_t query : QueriesToVerify(spec.q_len(), segments, batch, head, seed)) {
          rows.push_back({batch, head, query});
        }
      }
      std::vector<ReferenceRow> right =
          ReferenceAttention(spec, load.inputs(), batch, kv_head, rows);
      load.rows.insert(load.rows.end(), rows.begin(), rows.end());
      std::move(right.begin(), right.end(), std::back_inserter(load.right));
    }
  }
}

}  // namespace ringserve
