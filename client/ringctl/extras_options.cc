#include "client/ringctl/extras_options.h"

#include <utility>

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "client/ringctl/safetensors_header.h"

namespace ringserve {
namespace {

// `expected`: dtype and shape in words.
absl::Status Wrong(const std::string& path, const char* name, const SafetensorsTensor& tensor,
                   const std::string& expected) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": tensor \"", name, "\" is ", tensor.dtype,
                                                 " ", ShapeText(tensor.shape), ": must be ",
                                                 expected));
}

absl::StatusOr<SafetensorsTensor> OpenTensor(const std::string& path, const char* name,
                                             ExtrasFiles& files) {
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  files.files.push_back(*std::move(file));
  return files.files.back()->Tensor(name);
}

absl::StatusOr<std::span<const std::byte>> OpenPerHead(const std::string& path, const char* name,
                                                       int64_t heads, ExtrasFiles& files) {
  const absl::StatusOr<SafetensorsTensor> tensor = OpenTensor(path, name, files);
  if (!tensor.ok()) return tensor.status();
  if (tensor->dtype != "F32" || tensor->shape != std::vector<int64_t>{heads}) {
    return Wrong(path, name, *tensor, absl::StrCat("F32 [", heads, "], one for each query head"));
  }
  return tensor->bytes;
}

std::string OneOr(int64_t dim) { return dim == 1 ? "1" : absl::StrCat("1 or ", dim); }

absl::StatusOr<std::span<const std::byte>> OpenBias(const std::string& path, ExtrasFiles& files,
                                                    v1::AttentionSpec& spec) {
  const absl::StatusOr<SafetensorsTensor> tensor = OpenTensor(path, "bias", files);
  if (!tensor.ok()) return tensor.status();
  const std::string dtype = v1::DType_Name(spec.dtype()).substr(sizeof("DTYPE_") - 1);
  const bool boolean = tensor->dtype == "BOOL" || tensor->dtype == "U8";
  const std::vector<int64_t>& shape = tensor->shape;
  const auto one_or = [](int64_t dim, int64_t all) { return dim == 1 || dim == all; };
  if ((!boolean && tensor->dtype != dtype) || shape.size() != 4 ||
      !one_or(shape[0], spec.batch()) || !one_or(shape[1], spec.q_heads()) ||
      shape[2] != spec.q_len() || shape[3] != spec.kv_len()) {
    return Wrong(path, "bias", *tensor,
                 absl::StrCat(dtype, ", the dtype of q, or BOOL or U8, and [", OneOr(spec.batch()),
                              ", ", OneOr(spec.q_heads()), ", ", spec.q_len(), ", ", spec.kv_len(),
                              "]: [batch, heads, queries, keys]"));
  }
  spec.mutable_bias()->set_boolean(boolean);
  spec.mutable_bias()->set_per_batch(shape[0] > 1);
  spec.mutable_bias()->set_per_head(shape[1] > 1);
  return tensor->bytes;
}

}  // namespace

void AddExtrasOptions(CLI::App& command, ExtrasOptions& options, const std::string& group) {
  command
      .add_option("--alibi", options.alibi,
                  "Safetensors file with `alibi_slopes`, F32 [query heads]: slope x distance is "
                  "taken from the scores")
      ->type_name("FILE")
      ->group(group);
  command
      .add_option(
          "--sink-logits", options.sink_logits,
          "Safetensors file with `sink_logits`, F32 [query heads]: one more score for every "
          "query, of value 0")
      ->type_name("FILE")
      ->group(group);
  command
      .add_option("--bias", options.bias,
                  "Safetensors file with `bias`, [1 or batch, 1 or query heads, queries, keys], "
                  "added to the scores; BOOL or U8: 0 hides")
      ->type_name("FILE")
      ->group(group);
  command
      .add_flag("--lse-without-sinks", options.lse_without_sinks,
                "lse is the one before --sink-logits were added")
      ->group(group);
}

absl::StatusOr<ExtrasFiles> OpenExtras(const ExtrasOptions& options, v1::AttentionSpec& spec,
                                       AttendInputs& inputs) {
  ExtrasFiles files;
  if (options.alibi.has_value()) {
    const auto slopes = OpenPerHead(*options.alibi, "alibi_slopes", spec.q_heads(), files);
    if (!slopes.ok()) return slopes.status();
    spec.set_alibi_slopes(true);
    inputs.alibi_slopes = *slopes;
  }
  if (options.sink_logits.has_value()) {
    const auto logits = OpenPerHead(*options.sink_logits, "sink_logits", spec.q_heads(), files);
    if (!logits.ok()) return logits.status();
    spec.set_sink_logits(true);
    inputs.sink_logits = *logits;
  }
  if (options.bias.has_value()) {
    const auto bias = OpenBias(*options.bias, files, spec);
    if (!bias.ok()) return bias.status();
    inputs.bias = *bias;
  }
  return files;
}

}  // namespace ringserve
