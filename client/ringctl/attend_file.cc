#include "client/ringctl/attend_file.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/ringctl/safetensors_header.h"

namespace ringserve {
namespace {

// One of q, k, v with its dims told apart.
struct Input {
  const char* name;
  SafetensorsTensor tensor;
  int64_t batch = 0, heads = 0, length = 0, dim = 0;
};

absl::Status Wrong(const Input& input, absl::string_view demand) {
  return absl::InvalidArgumentError(absl::StrCat("tensor \"", input.name, "\" is ",
                                                 input.tensor.dtype, " ",
                                                 ShapeText(input.tensor.shape), ": ", demand));
}

absl::StatusOr<Input> ReadInput(const SafetensorsFile& file, const char* name, bool head_major) {
  absl::StatusOr<SafetensorsTensor> tensor = file.Tensor(name);
  if (!tensor.ok()) return tensor.status();
  Input input{.name = name, .tensor = *std::move(tensor)};
  const std::vector<int64_t>& shape = input.tensor.shape;
  if (shape.size() != 4) {
    return Wrong(input, head_major ? "must have 4 dimensions, [batch, heads, length, dim]"
                                   : "must have 4 dimensions, [batch, length, heads, dim]");
  }
  input.batch = shape[0];
  input.heads = shape[head_major ? 1 : 2];
  input.length = shape[head_major ? 2 : 1];
  input.dim = shape[3];
  return input;
}

absl::Status MustAgree(const Input& input, const char* what, int64_t value, const Input& other,
                       int64_t other_value) {
  if (value == other_value) return absl::OkStatus();
  return Wrong(input, absl::StrCat("its ", what, " is ", value, ", that of \"", other.name, "\" ",
                                   ShapeText(other.tensor.shape), " is ", other_value));
}

absl::StatusOr<v1::AttentionSpec> SpecOf(const Input& q, const Input& k, const Input& v,
                                         v1::TensorLayout layout) {
  v1::DType dtype = v1::DTYPE_UNSPECIFIED;
  if (!v1::DType_Parse("DTYPE_" + q.tensor.dtype, &dtype) || dtype == v1::DTYPE_UNSPECIFIED)
    return Wrong(q, "its dtype must be F32, F64, BF16 or F16");
  for (const Input* input : {&k, &v}) {
    if (input->tensor.dtype != q.tensor.dtype)
      return Wrong(*input, absl::StrCat("must have the dtype of \"q\", ", q.tensor.dtype));
  }
  for (const absl::Status& status : {
           MustAgree(k, "batch", k.batch, q, q.batch),
           MustAgree(v, "batch", v.batch, q, q.batch),
           MustAgree(v, "number of heads", v.heads, k, k.heads),
           MustAgree(v, "length", v.length, k, k.length),
           MustAgree(k, "head dim", k.dim, q, q.dim),
       }) {
    if (!status.ok()) return status;
  }
  if (k.heads > 0 && q.heads % k.heads != 0) {
    return Wrong(q, absl::StrCat("its ", q.heads, " heads must be a multiple of the ", k.heads,
                                 " of \"k\" ", ShapeText(k.tensor.shape)));
  }
  v1::AttentionSpec spec;
  spec.set_batch(q.batch);
  spec.set_q_heads(q.heads);
  spec.set_kv_heads(k.heads);
  spec.set_q_len(q.length);
  spec.set_kv_len(k.length);
  spec.set_head_dim(q.dim);
  spec.set_value_dim(v.dim);
  spec.set_dtype(dtype);
  spec.set_tensor_layout(layout);
  if (v.dim == 0) return Wrong(v, "its value dim must be at least 1");  // 0 would mean: as q's
  const absl::Status status = BytesOf(spec).status();
  if (!status.ok()) return absl::InvalidArgumentError(status.message());
  return spec;
}

}  // namespace

absl::StatusOr<AttendFile> OpenAttendFile(const std::string& path, v1::TensorLayout layout) {
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  const bool head_major = layout != v1::TENSOR_LAYOUT_BSHD;
  const absl::StatusOr<Input> q = ReadInput(**file, "q", head_major);
  const absl::StatusOr<Input> k = ReadInput(**file, "k", head_major);
  const absl::StatusOr<Input> v = ReadInput(**file, "v", head_major);
  absl::Status status = q.ok() ? k.ok() ? v.status() : k.status() : q.status();
  absl::StatusOr<v1::AttentionSpec> spec;
  if (status.ok()) {
    spec = SpecOf(*q, *k, *v, layout);
    status = spec.status();
  }
  if (!status.ok()) {
    const absl::string_view why = absl::StripPrefix(status.message(), absl::StrCat(path, ": "));
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
  }
  return AttendFile{
      *std::move(file), *std::move(spec), {q->tensor.bytes, k->tensor.bytes, v->tensor.bytes}};
}

}  // namespace ringserve
