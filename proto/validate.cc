#include "proto/validate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "proto/band_overlap.h"
#include "proto/protocol.h"
#include "proto/slice.h"
#include "proto/tensor_shape.h"

namespace ringserve {
namespace {

constexpr int64_t kMaxHeadDim = 1024;
constexpr double kMaxWeightRatio = 1e6;
constexpr int kMaxMasks = 65'536;  // an empty one: two bytes of a message, a hundred of memory
constexpr uint64_t kMaxTensorBytes = uint64_t{1} << 62;
constexpr size_t kMaxRequestIdBytes = 128;

template <typename Value>
absl::Status Wrong(absl::string_view field, const Value& value, absl::string_view demand) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ": ", demand));
}

absl::Status Unserved(absl::string_view field, absl::string_view what = "is not served yet") {
  return absl::UnimplementedError(absl::StrCat(field, " ", what));
}

absl::Status CheckRange(absl::string_view field, int64_t value, int64_t least, int64_t most) {
  if (value < least) return Wrong(field, value, absl::StrCat("at least ", least));
  if (value > most) return Wrong(field, value, absl::StrCat("at most ", most));
  return absl::OkStatus();
}

absl::Status CheckEnum(absl::string_view field, int value, bool known) {
  return known ? absl::OkStatus() : Wrong(field, value, "not a value of this enum");
}

// The same complaint about a part of `whole`. Names are put together when something is wrong, not
// before: a header may carry tens of thousands of masks.
absl::Status Within(absl::string_view whole, const absl::Status& status) {
  return status.ok() ? status
                     : absl::Status(status.code(), absl::StrCat(whole, ".", status.message()));
}

std::string Indexed(absl::string_view field, int index) {
  return absl::StrCat(field, "[", index, "]");
}

// A field that a newer client knows and this server does not would be ignored in silence, and might
// change the answer.
absl::Status CheckNoUnknownFields(const google::protobuf::Message& message) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const google::protobuf::UnknownFieldSet& unknown = reflection.GetUnknownFields(message);
  if (!unknown.empty()) {
    return Unserved(absl::StrCat("field number ", unknown.field(0).number()),
                    "is unknown to this server");
  }
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const google::protobuf::FieldDescriptor* field : fields) {
    if (field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (!field->is_repeated()) {
      const absl::Status status = CheckNoUnknownFields(reflection.GetMessage(message, field));
      if (!status.ok()) return Within(field->name(), status);
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
      const absl::Status status =
          CheckNoUnknownFields(reflection.GetRepeatedMessage(message, field, i));
      if (!status.ok()) return Within(Indexed(field->name(), i), status);
    }
  }
  return absl::OkStatus();
}

// Every tensor, and all of them together.
absl::Status CheckBytes(const v1::AttentionSpec& spec, Pass pass) {
  absl::uint128 total = 0;
  std::vector<v1::TensorId> tensors = UploadsOf(spec, pass);
  for (const v1::TensorId result : ResultsOf(spec, pass, /*return_lse=*/true))
    tensors.push_back(result);
  for (const v1::TensorId tensor : tensors) {
    const TensorShape shape = ShapeOf(tensor, spec);
    // Unchecked, the four factors could reach 2^137.
    absl::uint128 bytes = absl::uint128(shape.batch) * shape.planes_per_batch;
    if (bytes <= kMaxTensorBytes) bytes *= shape.rows;
    if (bytes <= kMaxTensorBytes) bytes *= shape.row_bytes;
    total += bytes;
    if (total > kMaxTensorBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "spec's dims make ", TensorName(tensor),
          total > bytes ? " and the tensors before it" : "", " larger than 2^62 bytes: batch ",
          spec.batch(), ", q_heads ", spec.q_heads(), ", kv_heads ", spec.kv_heads(), ", q_len ",
          spec.q_len(), ", kv_len ", spec.kv_len(), ", head_dim ", spec.head_dim(), ", value_dim ",
          ValueDim(spec)));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckDims(const v1::AttentionSpec& spec) {
  const std::pair<const char*, int64_t> dims[] = {
      {"spec.batch", spec.batch()},       {"spec.q_heads", spec.q_heads()},
      {"spec.kv_heads", spec.kv_heads()}, {"spec.q_len", spec.q_len()},
      {"spec.kv_len", spec.kv_len()},
  };
  for (const auto& [field, value] : dims) {
    if (absl::Status status = CheckRange(field, value, 1, kMaxDim); !status.ok()) return status;
  }
  absl::Status status = CheckRange("spec.head_dim", spec.head_dim(), 1, kMaxHeadDim);
  if (status.ok()) status = CheckRange("spec.value_dim", spec.value_dim(), 0, kMaxHeadDim);
  if (!status.ok()) return status;
  if (spec.q_heads() % spec.kv_heads() != 0) {
    return Wrong("spec.q_heads", spec.q_heads(),
                 absl::StrCat("must be a multiple of spec.kv_heads (", spec.kv_heads(), ")"));
  }
  return absl::OkStatus();
}

absl::Status CheckNumbers(const v1::AttentionSpec& spec) {
  if (spec.has_scale() && !std::isfinite(spec.scale()))
    return Wrong("spec.scale", spec.scale(), "must be finite");
  if (spec.has_scale() && spec.dtype() != v1::DTYPE_F64 &&
      std::abs(spec.scale()) > std::numeric_limits<float>::max()) {
    return Wrong("spec.scale", spec.scale(),
                 absl::StrCat("must be finite in fp32, in which ", v1::DType_Name(spec.dtype()),
                              " is computed"));
  }
  if (spec.has_softcap() && !(std::isfinite(spec.softcap()) && spec.softcap() > 0)) {
    return Wrong("spec.softcap", spec.softcap(), "must be finite and above 0");
  }
  if (!(spec.dropout() >= 0 && spec.dropout() < 1))
    return Wrong("spec.dropout", spec.dropout(), "must lie in [0, 1)");
  return absl::OkStatus();
}

template <typename Lengths>
absl::Status CheckLengths(const Lengths& lengths, absl::string_view field, int64_t most,
                          absl::string_view limit) {
  int64_t sum = 0;  // each is at most 2^31, and 2^32 of them fit no message: no overflow
  for (int i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 0 || lengths[i] > kMaxDim)
      return CheckRange(Indexed(field, i), lengths[i], 0, kMaxDim);
    sum += lengths[i];
  }
  if (sum <= most) return absl::OkStatus();
  return Wrong(field, absl::StrCat(sum, " in all"),
               absl::StrCat("at most ", limit, " (", most, ")"));
}

absl::Status CheckDocuments(const v1::Documents& documents, const v1::AttentionSpec& spec) {
  absl::Status status =
      CheckLengths(documents.q_lengths(), "q_lengths", spec.q_len(), "spec.q_len");
  if (!status.ok()) return status;
  if (documents.kv_lengths().empty()) {
    return CheckLengths(documents.q_lengths(), "q_lengths (kv_lengths are absent)", spec.kv_len(),
                        "spec.kv_len");
  }
  if (documents.kv_lengths_size() != documents.q_lengths_size()) {
    return Wrong("kv_lengths", absl::StrCat(documents.kv_lengths_size(), " entries"),
                 absl::StrCat("as many as q_lengths (", documents.q_lengths_size(), "), or none"));
  }
  return CheckLengths(documents.kv_lengths(), "kv_lengths", spec.kv_len(), "spec.kv_len");
}

absl::Status CheckBlocks(const v1::BlockMask& blocks, const v1::AttentionSpec& spec) {
  absl::Status status = CheckRange("q_block", blocks.q_block(), 1, kMaxDim);
  if (status.ok()) status = CheckRange("kv_block", blocks.kv_block(), 1, kMaxDim);
  if (!status.ok()) return status;
  const int64_t block_rows = (spec.q_len() + blocks.q_block() - 1) / blocks.q_block();
  const int64_t block_columns = (spec.kv_len() + blocks.kv_block() - 1) / blocks.kv_block();
  const int64_t bytes = block_rows * ((block_columns + 7) / 8);
  if (static_cast<int64_t>(blocks.bits().size()) == bytes) return status;
  return Wrong("bits", absl::StrCat(blocks.bits().size(), " bytes"),
               absl::StrCat("must be ", bytes, " (", block_rows, " block rows of ", block_columns,
                            " bits)"));
}

absl::Status CheckSlice(const v1::Slice& slice, const v1::AttentionSpec& spec) {
  absl::Status status = CheckRange("q_begin", slice.q_begin(), 0, spec.q_len());
  if (status.ok()) status = CheckRange("q_end", slice.q_end(), slice.q_begin(), spec.q_len());
  if (status.ok()) status = CheckRange("k_begin", slice.k_begin(), 0, spec.kv_len());
  if (status.ok()) status = CheckRange("k_end", slice.k_end(), slice.k_begin(), spec.kv_len());
  if (status.ok() && slice.has_lo()) status = CheckRange("lo", slice.lo(), -kMaxOffset, kMaxOffset);
  if (status.ok() && slice.has_hi()) status = CheckRange("hi", slice.hi(), -kMaxOffset, kMaxOffset);
  if (status.ok() && slice.has_lo() && slice.has_hi() && slice.lo() > slice.hi()) {
    status = Wrong("lo", slice.lo(), absl::StrCat("at most hi (", slice.hi(), ")"));
  }
  return status;
}

// `slices` passed CheckSlice. A pair that two slices show would count twice.
absl::Status CheckDisjoint(const google::protobuf::RepeatedPtrField<v1::Slice>& slices) {
  std::vector<Band> bands;
  bands.reserve(slices.size());
  for (const v1::Slice& slice : slices) bands.push_back(ToBand(slice));
  const std::optional<BandOverlap> overlap = FindOverlap(bands);
  if (!overlap) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      Indexed("slices", static_cast<int>(overlap->second)), " shows query ", overlap->q, " key ",
      overlap->k, ", as slices[", overlap->first, "] does: slices must be disjoint"));
}

absl::Status CheckMask(const v1::Mask& mask, const v1::AttentionSpec& spec) {
  const v1::Window& window = mask.window();
  absl::Status status = CheckRange("q_offset", mask.q_offset(), -kMaxOffset, kMaxOffset);
  if (status.ok() && window.has_left())
    status = CheckRange("window.left", window.left(), 0, kMaxOffset);
  if (status.ok() && window.has_right())
    status = CheckRange("window.right", window.right(), 0, kMaxOffset);
  if (status.ok()) status = CheckRange("sinks", mask.sinks(), 0, kMaxOffset);
  if (status.ok()) status = CheckRange("prefix", mask.prefix(), 0, kMaxOffset);
  if (!status.ok()) return status;
  if (mask.sinks() > 0 && !mask.has_window())
    return Wrong("sinks", mask.sinks(), "means nothing without window");
  if (mask.prefix() > 0 && !mask.causal())
    return Wrong("prefix", mask.prefix(), "means nothing without causal");
  if (mask.has_documents()) status = Within("documents", CheckDocuments(mask.documents(), spec));
  if (status.ok() && mask.has_blocks()) status = Within("blocks", CheckBlocks(mask.blocks(), spec));
  for (int i = 0; status.ok() && i < mask.slices_size(); ++i) {
    status = CheckSlice(mask.slices(i), spec);
    if (!status.ok()) return Within(Indexed("slices", i), status);
  }
  return status.ok() ? CheckDisjoint(mask.slices()) : status;
}

absl::Status CheckSpec(const v1::AttentionSpec& spec, Pass pass) {
  absl::Status status = CheckEnum("spec.dtype", spec.dtype(), v1::DType_IsValid(spec.dtype()));
  if (status.ok() && spec.dtype() == v1::DTYPE_UNSPECIFIED) {
    status =
        Wrong("spec.dtype", "unspecified", "one of DTYPE_F32, DTYPE_F64, DTYPE_BF16, DTYPE_F16");
  }
  if (status.ok()) {
    status = CheckEnum("spec.tensor_layout", spec.tensor_layout(),
                       v1::TensorLayout_IsValid(spec.tensor_layout()));
  }
  if (status.ok()) status = CheckDims(spec);
  if (status.ok()) status = CheckBytes(spec, pass);
  if (status.ok()) status = CheckNumbers(spec);
  if (status.ok() && spec.masks_size() > 1 && spec.masks_size() != spec.batch()) {
    status = Wrong("spec.masks", absl::StrCat(spec.masks_size(), " entries"),
                   absl::StrCat("none, one, or as many as spec.batch (", spec.batch(), ")"));
  }
  if (status.ok() && spec.masks_size() > kMaxMasks) {
    status = Wrong("spec.masks", absl::StrCat(spec.masks_size(), " entries"),
                   absl::StrCat("at most ", kMaxMasks));
  }
  for (int i = 0; status.ok() && i < spec.masks_size(); ++i) {
    status = CheckMask(spec.masks(i), spec);
    if (!status.ok()) return Within(Indexed("spec.masks", i), status);
  }
  return status;
}

// `spec` passed CheckSpec.
absl::Status CheckSpecServed(const v1::AttentionSpec& spec) {
  if (spec.has_softcap()) return Unserved("spec.softcap");
  if (spec.dropout() != 0) return Unserved("spec.dropout");
  return absl::OkStatus();
}

absl::Status CheckWeights(const v1::AttentionOptions& options) {
  const auto& weights = options.worker_weights();
  if (weights.empty()) return absl::OkStatus();
  for (int i = 0; i < weights.size(); ++i) {
    if (!(std::isfinite(weights[i]) && weights[i] > 0))
      return Wrong(Indexed("options.worker_weights", i), weights[i], "must be finite and above 0");
  }
  if (weights.size() != options.workers()) {
    return Wrong("options.worker_weights", absl::StrCat(weights.size(), " entries"),
                 absl::StrCat("none, or as many as options.workers (", options.workers(), ")"));
  }
  const auto [least, most] = std::minmax_element(weights.begin(), weights.end());
  if (*most / *least <= kMaxWeightRatio) return absl::OkStatus();
  return Wrong(Indexed("options.worker_weights", static_cast<int>(most - weights.begin())), *most,
               absl::StrCat("at most ", kMaxWeightRatio, " times the smallest (", *least, ")"));
}

absl::Status CheckOptions(const v1::AttentionOptions& options) {
  absl::Status status =
      CheckEnum("options.balancer", options.balancer(), v1::Balancer_IsValid(options.balancer()));
  if (status.ok()) {
    status =
        CheckEnum("options.rotate", options.rotate(), v1::RotateMethod_IsValid(options.rotate()));
  }
  if (status.ok()) status = CheckRange("options.workers", options.workers(), 0, kMaxRanks);
  if (status.ok()) status = CheckRange("options.ptrr_block", options.ptrr_block(), 0, kMaxDim);
  return status.ok() ? CheckWeights(options) : status;
}

// What neither shows alone, and what a pass does not have.
absl::Status CheckTogether(const v1::AttentionSpec& spec, const v1::AttentionOptions& options,
                           Pass pass) {
  if (pass.backward && options.return_lse()) {
    return Wrong("options.return_lse", "true", "AttendBackward takes the lse, and returns none");
  }
  if (pass.backward && options.rotate() == v1::ROTATE_METHOD_PASS_Q) {
    return Wrong("options.rotate", v1::RotateMethod_Name(options.rotate()),
                 "must be another in AttendBackward, where keys and values travel");
  }
  if (spec.has_bias() && options.rotate() == v1::ROTATE_METHOD_PASS_Q) {
    return Wrong("options.rotate", v1::RotateMethod_Name(options.rotate()),
                 "must be another with spec.bias, whose rows stay with their queries' owner");
  }
  return absl::OkStatus();
}

// `options` passed CheckOptions.
absl::Status CheckOptionsServed(const v1::AttentionOptions& options) {
  if (options.has_convert_to_f32() && !options.convert_to_f32()) {
    return Unserved("options.convert_to_f32",
                    "is false, which is not served: accumulation is in fp32 or wider");
  }
  return absl::OkStatus();
}

absl::Status CheckRequestId(const std::string& id) {
  if (id.size() > kMaxRequestIdBytes) {
    return Wrong("request_id", absl::StrCat(id.size(), " bytes"),
                 absl::StrCat("at most ", kMaxRequestIdBytes));
  }
  for (size_t i = 0; i < id.size(); ++i) {
    const unsigned char byte = id[i];
    if (byte < 0x20 || byte > 0x7E) {
      return absl::InvalidArgumentError(absl::StrCat("request_id's byte ", i, " is ", byte,
                                                     ": printable ASCII (32 to 126) alone"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateSpec(const v1::AttentionSpec& spec) {
  absl::Status status = CheckSpec(spec, {});
  if (status.ok()) status = CheckSpecServed(spec);
  return status.ok() ? Within("spec", CheckNoUnknownFields(spec)) : status;
}

absl::Status ValidateOptions(const v1::AttentionOptions& options) {
  absl::Status status = CheckOptions(options);
  if (status.ok()) status = CheckOptionsServed(options);
  return status.ok() ? Within("options", CheckNoUnknownFields(options)) : status;
}

absl::Status ValidateHeader(const v1::AttendHeader& header, bool backward) {
  const Pass pass = {.backward = backward, .d_lse = header.d_lse()};
  // What is wrong comes before what is not served: the caller has to mend it in any case.
  absl::Status status = CheckSpec(header.spec(), pass);
  if (status.ok()) status = CheckOptions(header.options());
  if (status.ok()) status = CheckTogether(header.spec(), header.options(), pass);
  if (status.ok()) status = CheckRequestId(header.request_id());
  if (status.ok() && header.d_lse() && !backward)
    status = Wrong("d_lse", "true", "AttendBackward alone takes gradients");
  if (status.ok()) status = CheckSpecServed(header.spec());
  if (status.ok()) status = CheckOptionsServed(header.options());
  if (status.ok() && !header.session().empty()) status = Unserved("session");
  return status.ok() ? Within("header", CheckNoUnknownFields(header)) : status;
}

absl::Status ValidatePlanRequest(const v1::PlanRequest& request) {
  const Pass pass = {.backward = request.backward(), .d_lse = request.backward()};
  absl::Status status = CheckSpec(request.spec(), pass);
  if (status.ok()) status = CheckOptions(request.options());
  if (status.ok()) status = CheckTogether(request.spec(), request.options(), pass);
  if (status.ok()) status = CheckSpecServed(request.spec());
  if (status.ok()) status = CheckOptionsServed(request.options());
  return status.ok() ? Within("request", CheckNoUnknownFields(request)) : status;
}

}  // namespace ringserve
