#include "client/ringctl/mask_file.h"

#include <fstream>
#include <iterator>
#include <set>
#include <vector>

#include <google/protobuf/util/json_util.h>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace ringserve {
namespace {

using nlohmann::json;

absl::Status Invalid(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
}

// A field's name may be written like_this or likeThis.
std::string Normalized(const std::string& name) {
  return absl::AsciiStrToLower(absl::StrReplaceAll(name, {{"_", ""}}));
}

// Protobuf takes the last of two fields of a name, and says nothing.
std::string NameGivenTwice(const std::string& text) {
  std::string twice;
  std::vector<std::set<std::string>> open;
  const auto look = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) open.emplace_back();
    if (event == json::parse_event_t::object_end) open.pop_back();
    if (event == json::parse_event_t::key) {
      const std::string name = parsed.get<std::string>();
      if (!open.back().insert(Normalized(name)).second) twice = name;
    }
    return event != json::parse_event_t::value;  // keep nothing
  };
  // The result is of no interest, and says so: a discarded value would be an error to convert.
  [[maybe_unused]] const json ignored = json::parse(text, look, /*allow_exceptions=*/false);
  return twice;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return Invalid(path, "cannot be opened");
  const int64_t size = file.tellg();
  if (size < 0 || size > kMaxMaskFileBytes) {
    return Invalid(path, absl::StrCat("not a file of at most ", kMaxMaskFileBytes, " bytes"));
  }
  file.seekg(0);
  std::string text(size, '\0');
  if (!file.read(text.data(), size)) return Invalid(path, "cannot be read");
  return text;
}

}  // namespace

absl::StatusOr<MaskFile> ReadMaskFile(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadText(path);
  if (!text.ok()) return text.status();
  if (!json::accept(*text)) return Invalid(path, "no JSON");
  const std::string twice = NameGivenTwice(*text);
  if (!twice.empty()) return Invalid(path, absl::StrCat("\"", twice, "\" is given twice"));

  const size_t first = text->find_first_not_of(" \t\r\n");
  MaskFile file;
  file.per_row = (*text)[first] == '[';
  // The text is one complete value, so it may stand inside another.
  const std::string wrapped = file.per_row ? absl::StrCat("{\"masks\":", *text, "}")
                                           : absl::StrCat("{\"masks\":[", *text, "]}");
  v1::AttentionSpec spec;
  const auto status = google::protobuf::util::JsonStringToMessage(wrapped, &spec);
  if (!status.ok()) {
    return Invalid(path,
                   absl::StrCat("no Mask in protobuf JSON: ",
                                std::string(status.message().data(), status.message().size())));
  }
  if (file.per_row && spec.masks().empty()) return Invalid(path, "the array of masks is empty");
  file.masks = std::move(*spec.mutable_masks());
  return file;
}

}  // namespace ringserve
