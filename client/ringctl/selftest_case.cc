#include "client/ringctl/selftest_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <random>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/ringctl/load_case.h"
#include "client/ringctl/names.h"

namespace ringserve {
namespace {

constexpr v1::DType kDTypes[] = {v1::DTYPE_F32, v1::DTYPE_BF16, v1::DTYPE_F16, v1::DTYPE_F64};
constexpr double kLongestForward = 700;
constexpr double kLongestBackward = 160;  // the reference computes every pair

class CaseDice {
 public:
  explicit CaseDice(uint64_t seed) : random_(seed) {}

  template <typename T>
  T OneOf(std::initializer_list<T> choices) {
    return choices.begin()[Between(0, static_cast<int64_t>(choices.size()) - 1)];
  }
  int64_t Between(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, std::max(least, most))(random_);
  }
  bool Chance(double probability) { return std::bernoulli_distribution(probability)(random_); }
  // 1 to `most`, even in the logarithm from 8 on.
  int64_t Length(double most) {
    if (Chance(0.15)) return Between(1, 8);
    return std::llround(
        std::exp(std::uniform_real_distribution<>(std::log(8), std::log(most))(random_)));
  }

  std::mt19937_64& random() { return random_; }

 private:
  std::mt19937_64 random_;
};

// Cuts [0, length) into `count` documents, some of them empty.
void AddLengths(CaseDice& dice, int64_t length, int64_t count,
                google::protobuf::RepeatedField<int64_t>* lengths) {
  for (int64_t left = length, i = count; i > 0; --i) {
    const int64_t taken = i == 1 ? left : dice.Between(0, std::min(left, 2 * left / i + 1));
    lengths->Add(taken);
    left -= taken;
  }
}

void SetBlocks(CaseDice& dice, const v1::AttentionSpec& spec, v1::Mask& mask) {
  v1::BlockMask& blocks = *mask.mutable_blocks();
  blocks.set_q_block(dice.Between(1 + spec.q_len() / 12, 1 + spec.q_len() / 3));
  blocks.set_kv_block(dice.Between(1 + spec.kv_len() / 12, 1 + spec.kv_len() / 3));
  const int64_t rows = (spec.q_len() + blocks.q_block() - 1) / blocks.q_block();
  const int64_t columns = (spec.kv_len() + blocks.kv_block() - 1) / blocks.kv_block();
  for (int64_t byte = 0; byte < rows * ((columns + 7) / 8); ++byte) {
    blocks.mutable_bits()->push_back(static_cast<char>(dice.Between(0, 255)));
  }
}

// A causal band over the first queries, and one the other way round over the others.
void SetSlices(CaseDice& dice, const v1::AttentionSpec& spec, v1::Mask& mask) {
  const int64_t cut = dice.Between(0, spec.q_len());
  v1::Slice& first = *mask.add_slices();
  first.set_q_end(cut);
  first.set_k_end(spec.kv_len());
  first.set_hi(dice.Between(-4, spec.kv_len() / 2));
  v1::Slice& second = *mask.add_slices();
  second.set_q_begin(cut);
  second.set_q_end(spec.q_len());
  second.set_k_begin(dice.Between(0, spec.kv_len() / 2));
  second.set_k_end(spec.kv_len());
  second.set_lo(dice.Between(-spec.q_len(), 4));
}

using Family = std::pair<const char*, void (*)(CaseDice&, const v1::AttentionSpec&, v1::Mask&)>;
constexpr Family kFamilies[] = {
    {"full", [](CaseDice&, const v1::AttentionSpec&, v1::Mask&) {}},
    {"causal", [](CaseDice&, const v1::AttentionSpec&, v1::Mask& mask) { mask.set_causal(true); }},
    {"bottom-right",
     [](CaseDice&, const v1::AttentionSpec&, v1::Mask& mask) {
       mask.set_causal(true);
       mask.set_bottom_right(true);
     }},
    {"offset",
     [](CaseDice& dice, const v1::AttentionSpec& spec, v1::Mask& mask) {
       mask.set_causal(true);
       mask.set_q_offset(dice.Between(-spec.q_len() / 2, spec.kv_len()));
     }},
    {"window",
     [](CaseDice& dice, const v1::AttentionSpec& spec, v1::Mask& mask) {
       mask.mutable_window()->set_left(dice.Between(0, spec.kv_len() / 2));
       mask.mutable_window()->set_right(dice.Between(0, spec.kv_len() / 4));
     }},
    {"window and sinks",
     [](CaseDice& dice, const v1::AttentionSpec& spec, v1::Mask& mask) {
       mask.set_causal(true);
       mask.mutable_window()->set_left(dice.Between(0, spec.kv_len() / 4));
       mask.set_sinks(dice.Between(1, 5));
     }},
    {"prefix",
     [](CaseDice& dice, const v1::AttentionSpec& spec, v1::Mask& mask) {
       mask.set_causal(true);
       mask.set_prefix(dice.Between(1, spec.kv_len()));
     }},
    {"documents",
     [](CaseDice& dice, const v1::AttentionSpec& spec, v1::Mask& mask) {
       mask.set_causal(true);
       AddLengths(dice, std::min(spec.q_len(), spec.kv_len()), dice.Between(1, 6),
                  mask.mutable_documents()->mutable_q_lengths());
     }},
    {"cross documents",
     [](CaseDice& dice, const v1::AttentionSpec& spec, v1::Mask& mask) {
       const int64_t count = dice.Between(1, 5);
       AddLengths(dice, spec.q_len(), count, mask.mutable_documents()->mutable_q_lengths());
       AddLengths(dice, spec.kv_len(), count, mask.mutable_documents()->mutable_kv_lengths());
     }},
    {"blocks", SetBlocks},
    {"slices", SetSlices},
};
constexpr int kPerRow = std::size(kFamilies);  // one more: each batch row has a mask of its own
static_assert(kCasesOfAllKinds == std::size(kDTypes) * (kPerRow + 1));

std::string SetMasks(CaseDice& dice, int family, v1::AttentionSpec& spec) {
  if (family < kPerRow) {
    kFamilies[family].second(dice, spec, *spec.add_masks());
    return kFamilies[family].first;
  }
  for (int64_t row = 0; row < spec.batch(); ++row) {
    kFamilies[dice.Between(0, kPerRow - 1)].second(dice, spec, *spec.add_masks());
  }
  return "one per row";
}

void SetDims(CaseDice& dice, int family, double longest, v1::AttentionSpec& spec) {
  spec.set_batch(family == kPerRow ? dice.OneOf({2, 3}) : dice.OneOf({1, 1, 2}));
  spec.set_kv_heads(dice.OneOf({1, 2, 3}));
  spec.set_q_heads(spec.kv_heads() * dice.OneOf({1, 2, 4}));
  spec.set_q_len(dice.Length(longest));
  spec.set_kv_len(dice.Chance(0.6) ? spec.q_len() : dice.Length(longest));
  spec.set_head_dim(dice.OneOf({16, 40, 64, 64, 67, 80, 96, 128, 128, 192, 256}));
  spec.set_value_dim(dice.Chance(0.75) ? spec.head_dim() : dice.OneOf({24, 64, 100, 160}));
  spec.set_tensor_layout(dice.OneOf({v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}));
  if (dice.Chance(0.2)) spec.set_scale(dice.OneOf({0.02, 0.1, -0.1}));
}

void SetOptions(CaseDice& dice, int workers, v1::AttentionOptions& options) {
  options.set_balancer(
      dice.OneOf({v1::BALANCER_AUTO, v1::BALANCER_CONTIGUOUS, v1::BALANCER_HEAD_TAIL,
                  v1::BALANCER_PER_DOCUMENT, v1::BALANCER_PTRR}));
  options.set_rotate(dice.OneOf({v1::ROTATE_METHOD_AUTO, v1::ROTATE_METHOD_ALL_TO_ALL,
                                 v1::ROTATE_METHOD_ALL_GATHER, v1::ROTATE_METHOD_PASS_Q}));
  options.set_workers(workers);
  options.set_return_lse(true);
}

// Little-endian f32, as the protocol has them.
std::vector<std::byte> Floats(const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// Half of the cases have one or more. A bias does not travel, so it goes with no pass-Q.
void SetExtras(CaseDice& dice, SelftestCase& one) {
  v1::AttentionSpec& spec = *one.header.mutable_spec();
  if (dice.Chance(0.5)) return;
  const int64_t which = dice.Between(1, 7);
  std::vector<std::string> names;
  if ((which & 1) != 0 && one.header.options().rotate() != v1::ROTATE_METHOD_PASS_Q) {
    spec.mutable_bias()->set_boolean(dice.Chance(0.4));
    spec.mutable_bias()->set_per_batch(dice.Chance(0.5));
    spec.mutable_bias()->set_per_head(dice.Chance(0.5));
    names.emplace_back(spec.bias().boolean() ? "boolean bias" : "bias");
    one.bias.resize(BytesOf(spec)->bias);
    if (spec.bias().boolean()) {
      for (std::byte& shown : one.bias) shown = std::byte{dice.Chance(0.8)};
    } else {
      FillNormal(spec.dtype(), dice.random(), one.bias);
    }
  }
  std::vector<float> per_head(spec.q_heads());
  if ((which & 2) != 0) {
    spec.set_alibi_slopes(true);
    names.emplace_back("alibi");
    for (size_t h = 0; h < per_head.size(); ++h)
      per_head[h] = std::exp2f(-1.0f - static_cast<float>(h));
    one.alibi_slopes = Floats(per_head);
  }
  if ((which & 4) != 0) {
    spec.set_sink_logits(true);
    names.emplace_back("sink logits");
    for (float& logit : per_head) logit = static_cast<float>(dice.Between(-30, 30)) / 10;
    one.sink_logits = Floats(per_head);
    one.header.mutable_options()->set_lse_without_sinks(dice.Chance(0.3));
  }
  for (const std::string& name : names) {
    absl::StrAppend(&one.extras, one.extras.empty() ? "" : ", ", name);
  }
}

}  // namespace

std::string SelftestCase::group() const {
  return absl::StrCat(backward ? "backward " : "forward ", NameOf(header.spec().dtype()));
}

SelftestCase MakeSelftestCase(uint64_t seed, int workers) {
  CaseDice dice(seed);
  SelftestCase one;
  one.seed = seed;
  one.backward = (seed + seed / kCasesOfAllKinds) % 3 == 2;
  const int family = static_cast<int>(seed / std::size(kDTypes) % (kPerRow + 1));
  v1::AttentionSpec& spec = *one.header.mutable_spec();
  spec.set_dtype(kDTypes[seed % std::size(kDTypes)]);
  SetDims(dice, family, one.backward ? kLongestBackward : kLongestForward, spec);
  one.mask = SetMasks(dice, family, spec);
  SetOptions(dice, workers, *one.header.mutable_options());
  SetExtras(dice, one);
  const TensorBytes bytes = *BytesOf(spec);
  for (const auto& [tensor, size] :
       {std::pair{&one.q, bytes.q}, {&one.k, bytes.k}, {&one.v, bytes.v}}) {
    tensor->resize(size);
    FillNormal(spec.dtype(), dice.random(), *tensor);
  }
  if (!one.backward) return one;
  one.d_out.resize(bytes.out);
  FillNormal(spec.dtype(), dice.random(), one.d_out);
  if (dice.Chance(0.5)) {
    one.d_lse.resize(bytes.lse);
    FillNormal(spec.dtype() == v1::DTYPE_F64 ? v1::DTYPE_F64 : v1::DTYPE_F32, dice.random(),
               one.d_lse);
  }
  return one;
}

}  // namespace ringserve
