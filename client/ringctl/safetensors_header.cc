#include "client/ringctl/safetensors_header.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace ringserve {
namespace {

constexpr size_t kMaxDims = 32;
constexpr size_t kShownNameBytes = 64;
constexpr int64_t kMaxTensorBytes = int64_t{1} << 62;

// A stranger's words, fit for a message.
std::string Shown(const std::string& text) {
  const std::string escaped = absl::Utf8SafeCEscape(text.substr(0, kShownNameBytes));
  return absl::StrCat("\"", escaped, text.size() > kShownNameBytes ? "..." : "", "\"");
}

// Takes the parser's tokens one by one; the first that does not belong where it stands ends it.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  const std::string& error() const { return error_; }
  std::vector<SafetensorsEntry>& entries() { return entries_; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_float(double, const std::string& text) override { return Unexpected(text); }
  bool binary(nlohmann::json::binary_t&) override { return Unexpected("binary data"); }
  bool number_integer(int64_t value) override { return Unexpected(absl::StrCat(value)); }
  bool number_unsigned(uint64_t value) override;
  bool string(std::string& value) override;
  bool start_object(std::size_t) override;
  bool key(std::string& name) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("the header is no JSON at its byte ", position));
  }

 private:
  enum class Place { kOutside, kFile, kTensor, kShape, kOffsets, kMetadata, kAfter };
  enum Field { kDtype = 1, kShape = 2, kOffsets = 4, kAll = 7 };

  bool Fail(std::string why) {
    error_ = std::move(why);
    return false;
  }
  bool Unexpected(const std::string& what);
  bool TensorKey(const std::string& name);
  // Where we are, for messages.
  std::string Where() const;

  std::string error_;
  std::vector<SafetensorsEntry> entries_;
  std::set<std::string> names_;
  Place place_ = Place::kOutside;
  std::string key_;
  int fields_ = 0;   // of the tensor that is being read: those seen
  int offsets_ = 0;  // likewise: numbers seen in data_offsets
};

std::string HeaderReader::Where() const {
  switch (place_) {
    case Place::kTensor:
    case Place::kShape:
    case Place::kOffsets:
      return absl::StrCat("tensor ", Shown(entries_.back().name), ", ", Shown(key_));
    case Place::kMetadata:
      return "__metadata__";
    case Place::kFile:
      return absl::StrCat("header, ", Shown(key_));
    default:
      return "header";
  }
}

bool HeaderReader::Unexpected(const std::string& what) {
  const char* expected = place_ == Place::kFile       ? "an object"
                         : place_ == Place::kMetadata ? "a string"
                         : place_ == Place::kShape    ? "an integer, at least 0 and below 2^63"
                         : place_ == Place::kOffsets  ? "two integers, at least 0"
                         : place_ != Place::kTensor   ? "an object"
                         : key_ == "dtype"            ? "a string"
                                                      : "an array of integers";
  return Fail(absl::StrCat(Where(), " is ", what, ": must be ", expected));
}

bool HeaderReader::number_unsigned(uint64_t value) {
  if (place_ == Place::kShape) {
    std::vector<int64_t>& shape = entries_.back().shape;
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      return Unexpected(absl::StrCat(value));
    if (shape.size() == kMaxDims)
      return Fail(absl::StrCat(Where(), " has more than ", kMaxDims, " dimensions"));
    shape.push_back(static_cast<int64_t>(value));
    return true;
  }
  if (place_ == Place::kOffsets && offsets_ < 2) {
    (offsets_++ == 0 ? entries_.back().begin : entries_.back().end) = value;
    return true;
  }
  return Unexpected(absl::StrCat(value));
}

bool HeaderReader::string(std::string& value) {
  if (place_ == Place::kMetadata) return true;
  if (place_ != Place::kTensor || key_ != "dtype") return Unexpected(Shown(value));
  entries_.back().dtype = value;
  return true;
}

bool HeaderReader::start_object(std::size_t) {
  if (place_ == Place::kOutside) {
    place_ = Place::kFile;
    return true;
  }
  if (place_ != Place::kFile) return Unexpected("an object");
  if (key_ == "__metadata__") {
    place_ = Place::kMetadata;
    return true;
  }
  place_ = Place::kTensor;
  entries_.push_back({.name = key_});
  fields_ = offsets_ = 0;
  return true;
}

bool HeaderReader::key(std::string& name) {
  if (place_ == Place::kMetadata) return true;
  if (place_ == Place::kTensor) return TensorKey(name);
  if (!names_.insert(name).second) return Fail(absl::StrCat(Shown(name), " occurs twice"));
  key_ = name;
  return true;
}

bool HeaderReader::TensorKey(const std::string& name) {
  const int field = name == "dtype"          ? kDtype
                    : name == "shape"        ? kShape
                    : name == "data_offsets" ? kOffsets
                                             : 0;
  const std::string tensor = absl::StrCat("tensor ", Shown(entries_.back().name));
  if (field == 0) return Fail(absl::StrCat(tensor, " has an unknown field ", Shown(name)));
  if ((fields_ & field) != 0) return Fail(absl::StrCat(tensor, " has ", name, " twice"));
  fields_ |= field;
  key_ = name;
  return true;
}

bool HeaderReader::end_object() {
  switch (place_) {
    case Place::kTensor:
      if (fields_ != kAll) {
        return Fail(absl::StrCat("tensor ", Shown(entries_.back().name),
                                 " needs dtype, shape and data_offsets"));
      }
      place_ = Place::kFile;
      return true;
    case Place::kMetadata:
      place_ = Place::kFile;
      return true;
    default:
      place_ = Place::kAfter;
      return true;
  }
}

bool HeaderReader::start_array(std::size_t) {
  if (place_ != Place::kTensor || key_ == "dtype") return Unexpected("an array");
  place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
  return true;
}

bool HeaderReader::end_array() {
  if (place_ == Place::kOffsets && offsets_ != 2)
    return Unexpected(absl::StrCat("an array of ", offsets_));
  place_ = Place::kTensor;
  return true;
}

absl::Status CheckEntries(std::vector<SafetensorsEntry>& entries, uint64_t data_bytes) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t next = 0;
  for (const SafetensorsEntry& entry : entries) {
    const std::string tensor = absl::StrCat("tensor ", Shown(entry.name));
    const std::string range = absl::StrCat("data_offsets [", entry.begin, ", ", entry.end, "]");
    if (entry.begin > entry.end || entry.end > data_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(tensor, " has ", range,
                                                     ": must ascend and lie within the file's ",
                                                     data_bytes, " bytes of data"));
    }
    const absl::StatusOr<uint64_t> bytes = SafetensorsBytes(entry.dtype, entry.shape);
    if (!bytes.ok())
      return absl::InvalidArgumentError(absl::StrCat(tensor, ": ", bytes.status().message()));
    if (entry.end - entry.begin != *bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(tensor, " has ", range, ", ", entry.end - entry.begin,
                       " bytes: ", entry.dtype, " ", ShapeText(entry.shape), " takes ", *bytes));
    }
    if (entry.begin != next) {
      return absl::InvalidArgumentError(
          absl::StrCat(tensor, " has ", range, ": must begin at ", next, ", where ",
                       next == 0 ? "the data begin" : "the tensor before it ends"));
    }
    next = entry.end;
  }
  if (next == data_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the tensors take ", next, " bytes: the file has ",
                                                 data_bytes, " bytes of data"));
}

}  // namespace

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view text,
                                                                     uint64_t data_bytes) {
  if (text.empty() || text.front() != '{')
    return absl::InvalidArgumentError("not a safetensors file: its header does not begin with {");
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(text, &reader))
    return absl::InvalidArgumentError(absl::StrCat("not a safetensors file: ", reader.error()));
  std::vector<SafetensorsEntry> entries = std::move(reader.entries());
  const absl::Status status = CheckEntries(entries, data_bytes);
  if (!status.ok()) return status;
  return entries;
}

std::string WriteSafetensorsHeader(const std::vector<SafetensorsEntry>& entries) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  for (const SafetensorsEntry& entry : entries) {
    header[entry.name] = {
        {"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t size = text.size();
  std::string bytes(sizeof(size), '\0');
  std::memcpy(bytes.data(), &size, sizeof(size));
  return bytes + text;
}

int64_t SafetensorsElementBits(std::string_view dtype) {
  constexpr std::pair<std::string_view, int64_t> kBits[] = {
      {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E5M2", 8}, {"F8_E4M3", 8},
      {"F8_E8M0", 8}, {"BOOL", 8},    {"U8", 8},      {"I8", 8},      {"U16", 16},
      {"I16", 16},    {"F16", 16},    {"BF16", 16},   {"U32", 32},    {"I32", 32},
      {"F32", 32},    {"U64", 64},    {"I64", 64},    {"F64", 64},    {"C64", 64},
  };
  for (const auto& [name, bits] : kBits) {
    if (name == dtype) return bits;
  }
  return 0;
}

absl::StatusOr<uint64_t> SafetensorsBytes(std::string_view dtype,
                                          const std::vector<int64_t>& shape) {
  int64_t bits = SafetensorsElementBits(dtype);
  if (bits == 0)
    return absl::InvalidArgumentError(absl::StrCat("unknown dtype ", Shown(std::string(dtype))));
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape ", ShapeText(shape), " has the negative dimension ", dim));
    }
    empty = empty || dim == 0;
  }
  if (empty) return 0;
  absl::Status too_large = absl::InvalidArgumentError(
      absl::StrCat("shape ", ShapeText(shape), " takes more than 2^62 bytes"));
  int64_t elements = 1;
  for (const int64_t dim : shape) {
    if (__builtin_mul_overflow(elements, dim, &elements)) return too_large;
  }
  if (bits < 8) {
    if (__builtin_mul_overflow(elements, bits, &bits)) return too_large;
    if (bits % 8 == 0) return bits / 8;
    return absl::InvalidArgumentError(absl::StrCat(
        "shape ", ShapeText(shape), " of ", std::string(dtype), " takes no whole number of bytes"));
  }
  if (__builtin_mul_overflow(elements, bits / 8, &elements) || elements > kMaxTensorBytes)
    return too_large;
  return elements;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace ringserve
