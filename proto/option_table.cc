#include "proto/option_table.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>

#include <yaml-cpp/yaml.h>
#include <CLI/CLI.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"

namespace ringserve {
namespace {

constexpr char kConfigFlag[] = "--config";
constexpr char kConfigVariable[] = "RINGSERVE_CONFIG";

std::string Variable(const std::string& name) {
  return absl::StrCat("RINGSERVE_", absl::AsciiStrToUpper(absl::StrReplaceAll(name, {{"-", "_"}})));
}

// Nothing: not given.
std::optional<std::string> FromEnvironment(const std::string& variable) {
  const char* text = std::getenv(variable.c_str());
  if (text == nullptr || *text == '\0') return std::nullopt;
  return text;
}

// Levenshtein's.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t changed = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({changed, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

// The shortest decimal that is read back as `value`.
std::string Decimal(double value) {
  std::string text;
  for (const int digits : {6, 15, 17}) {
    text = absl::StrFormat("%.*g", digits, value);
    double back = 0;
    if (absl::SimpleAtod(text, &back) && back == value) break;
  }
  return text;
}

std::string YamlScalar(const std::string& text) {
  YAML::Emitter emitter;
  emitter << text;
  return emitter.c_str();
}

// "16GiB", "16384"; nothing: neither.
std::optional<uint64_t> Bytes(std::string text) {
  uint64_t bytes = 0;
  try {
    const std::string error = CLI::AsSizeValue(/*kb_is_1000=*/false)(text);
    if (!error.empty() || !absl::SimpleAtoi(text, &bytes)) return std::nullopt;
  } catch (const CLI::ValidationError&) {
    return std::nullopt;
  }
  return bytes;
}

absl::Status Apply(OptionTable::Row& row, const std::string& text, const std::string& where,
                   const std::string& source) {
  if (!row.set(text)) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": is '", text, "': must be ", row.allowed));
  }
  row.source = source;
  return absl::OkStatus();
}

std::string KindOf(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Sequence:
      return "a list";
    case YAML::NodeType::Map:
      return "a map";
    default:
      return "empty";
  }
}

// `option` as --help shows it behind the name.
std::string HelpText(const std::string& kind, const std::string& shown,
                     const std::string& variable) {
  return absl::StrCat(kind, kind.empty() ? "" : " ",
                      shown.empty() || kind.empty() ? "" : absl::StrCat("[", shown, "] "),
                      "(Env:", variable, ")");
}

}  // namespace

OptionTable::Row& OptionTable::Add(Row row) {
  row.shown = row.get();
  rows_.push_back(std::move(row));
  return rows_.back();
}

OptionTable::Row& OptionTable::Text(const std::string& name, const std::string& kind,
                                    std::string& value, const std::string& what) {
  return Add({.name = name,
              .kind = kind,
              .what = what,
              .allowed = "text",
              .set =
                  [&value](const std::string& text) {
                    value = text;
                    return true;
                  },
              .get = [&value] { return value; }});
}

OptionTable::Row& OptionTable::Switch(const std::string& name, bool& value,
                                      const std::string& what) {
  return Add({.name = name,
              .what = what,
              .allowed = "true or false",
              .set =
                  [&value](const std::string& text) {
                    const bool on = text == "true" || text == "1";
                    if (!on && text != "false" && text != "0") return false;
                    value = on;
                    return true;
                  },
              .get = [&value] { return value ? std::string("true") : "false"; }});
}

OptionTable::Row& OptionTable::Size(const std::string& name, uint64_t least, uint64_t most,
                                    uint64_t& value, const std::string& what) {
  return Add({.name = name,
              .kind = "BYTES",
              .what = what,
              .allowed = absl::StrCat("bytes, from ", least, " to ", most,
                                      ", with or without a unit as in 16GiB"),
              .set =
                  [=, &value](const std::string& text) {
                    const std::optional<uint64_t> bytes = Bytes(text);
                    if (!bytes.has_value() || *bytes < least || *bytes > most) return false;
                    value = *bytes;
                    return true;
                  },
              .get = [&value] { return absl::StrCat(value); }});
}

OptionTable::Row& OptionTable::Number(const std::string& name, bool zero,
                                      const std::function<double()>& get,
                                      const std::function<void(double)>& set,
                                      const std::string& what) {
  return Add({.name = name,
              .kind = "X",
              .what = what,
              .allowed = zero ? "a finite number of at least 0" : "a finite number above 0",
              .set =
                  [=](const std::string& text) {
                    double number = 0;
                    if (!absl::SimpleAtod(text, &number) || !std::isfinite(number) || number < 0 ||
                        (number == 0 && !zero)) {
                      return false;
                    }
                    set(number);
                    return true;
                  },
              .get = [=] { return Decimal(get()); }});
}

OptionTable::Row& OptionTable::OneOf(const std::string& name,
                                     const std::vector<std::string>& choices, std::string& value,
                                     const std::string& what) {
  return Add({.name = name,
              .kind = "NAME",
              .what = what,
              .allowed = absl::StrCat("one of ", absl::StrJoin(choices, ", ")),
              .set =
                  [=, &value](const std::string& text) {
                    if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
                      return false;
                    }
                    value = text;
                    return true;
                  },
              .get = [&value] { return value; }});
}

OptionTable::Row& OptionTable::AddWhole(const std::string& name, int64_t least, int64_t most,
                                        const std::function<int64_t()>& get,
                                        const std::function<void(int64_t)>& set,
                                        const std::string& what) {
  return Add({.name = name,
              .kind = "N",
              .what = what,
              .allowed = absl::StrCat("a whole number from ", least, " to ", most),
              .set =
                  [=](const std::string& text) {
                    int64_t number = 0;
                    if (!absl::SimpleAtoi(text, &number) || number < least || number > most) {
                      return false;
                    }
                    set(number);
                    return true;
                  },
              .get = [=] { return absl::StrCat(get()); }});
}

OptionTable::Row* OptionTable::Find(const std::string& name) {
  const auto row =
      std::find_if(rows_.begin(), rows_.end(), [&](const Row& row) { return row.name == name; });
  return row == rows_.end() ? nullptr : &*row;
}

std::string OptionTable::Nearest(const std::string& name) const {
  return std::min_element(rows_.begin(), rows_.end(),
                          [&](const Row& a, const Row& b) {
                            return EditDistance(name, a.name) < EditDistance(name, b.name);
                          })
      ->name;
}

std::string OptionTable::NoOption(const std::string& argument) const {
  if (!absl::StartsWith(argument, "--")) return absl::StrCat("'", argument, "' is no option");
  const std::string flag = argument.substr(0, argument.find('='));
  return absl::StrCat("there is no option ", flag, "; the nearest is --", Nearest(flag.substr(2)));
}

absl::Status OptionTable::ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  if (!file || (file.peek() != EOF && !(text << file.rdbuf())) || file.bad()) {
    return absl::InvalidArgumentError(absl::StrCat(kConfigFlag, " '", path, "': cannot be read"));
  }
  const auto wrong = [&](const YAML::Mark& at, absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", at.line + 1, ": ", what));
  };
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text.str());
    if (documents.empty() || (documents.size() == 1 && documents[0].IsNull())) {
      return absl::OkStatus();
    }
    if (documents.size() > 1) return wrong(documents[1].Mark(), "more than one document");
    if (!documents[0].IsMap()) {
      return wrong(documents[0].Mark(), "must be a map: lines of 'name: value'");
    }
    std::set<std::string> seen;
    for (const auto& line : documents[0]) {
      const YAML::Node &key = line.first, &value = line.second;
      const std::string name = key.IsScalar() ? key.Scalar() : KindOf(key);
      Row* row = Find(name);
      if (row == nullptr) {
        return wrong(key.Mark(), absl::StrCat("there is no option '", name, "'; the nearest is '",
                                              Nearest(name), "'"));
      }
      if (!seen.insert(name).second) return wrong(key.Mark(), absl::StrCat(name, ": given twice"));
      if (!value.IsScalar()) {
        return wrong(key.Mark(),
                     absl::StrCat(name, ": is ", KindOf(value), ": must be ", row->allowed));
      }
      const std::string where = absl::StrCat(path, ":", key.Mark().line + 1);
      const absl::Status status =
          Apply(*row, value.Scalar(), absl::StrCat(where, ": ", name), where);
      if (!status.ok()) return status;
    }
  } catch (const YAML::Exception& error) {
    return wrong(error.mark, error.msg);
  }
  return absl::OkStatus();
}

absl::Status OptionTable::ReadEnvironment() {
  for (Row& row : rows_) {
    const std::string variable = Variable(row.name);
    const std::optional<std::string> text = FromEnvironment(variable);
    if (!text.has_value()) continue;
    const absl::Status status = Apply(row, *text, variable, variable);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::optional<int> OptionTable::Parse(int argc, const char* const* argv,
                                      const std::function<absl::Status()>& check) {
  CLI::App app(program_.what, program_.name);
  app.footer(
      absl::StrCat("An option that no flag gives is taken from the environment (Env), else "
                   "from the file of --config.",
                   program_.footer.empty() ? "" : "\n", program_.footer));
  app.set_version_flag("--version", absl::StrCat(program_.name, " ", program_.version));
  app.allow_extras();
  std::string file;
  bool print = false, markdown = false;
  app.add_option(kConfigFlag, file,
                 "Values of options that neither a flag nor the environment gives: a YAML file "
                 "with lines of 'name: value', named as the flags are")
      ->option_text(HelpText("FILE", "", kConfigVariable));
  app.add_flag("--print-config", print,
               "Print what is in force, as such a file, with where each value came from; and end");
  app.add_flag("--help-markdown", markdown)->group("");
  for (const ActionFlag& action : actions_) {
    app.add_flag_callback(
        absl::StrCat("--", action.name),
        [&action] {
          action.act();
          throw CLI::Success();
        },
        action.what);
  }
  std::vector<const CLI::Option*> flags;
  for (const Row& row : rows_) {
    const std::string flag = absl::StrCat("--", row.name);
    CLI::Option* option =
        row.kind.empty() ? app.add_flag(flag, row.what) : app.add_option(flag, row.what);
    flags.push_back(option->option_text(HelpText(row.kind, row.shown, Variable(row.name))));
  }
  const auto refuse = [&](absl::string_view why) {
    std::fprintf(stderr, "%s: %s\n", program_.name.c_str(), std::string(why).c_str());
    return kExitBadOption;
  };
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return refuse(error.what());
  }
  if (!app.remaining().empty()) return refuse(NoOption(app.remaining().front()));
  if (markdown) {
    std::printf("%s", Markdown().c_str());
    return 0;
  }
  if (file.empty()) file = FromEnvironment(kConfigVariable).value_or("");
  absl::Status status = file.empty() ? absl::OkStatus() : ReadFile(file);
  if (status.ok()) status = ReadEnvironment();
  for (size_t i = 0; i < rows_.size() && status.ok(); ++i) {
    if (flags[i]->count() == 0) continue;
    const std::string flag = absl::StrCat("--", rows_[i].name);
    status = Apply(rows_[i], flags[i]->results().back(), flag, flag);
  }
  if (status.ok()) status = check();
  if (!status.ok()) return refuse(status.message());
  if (!print) return std::nullopt;
  std::printf("%s", Config().c_str());
  return 0;
}

std::string OptionTable::Config() const {
  std::string config;
  for (const Row& row : rows_) {
    absl::StrAppend(&config, row.name, ": ", YamlScalar(row.get()), "  # ", row.source, "\n");
  }
  return config;
}

std::string OptionTable::Markdown() const {
  std::string table = "| option | environment | default | must be | |\n|---|---|---|---|---|\n";
  for (const Row& row : rows_) {
    absl::StrAppend(&table, "| `--", row.name, row.kind.empty() ? "" : " ", row.kind, "` | `",
                    Variable(row.name), "` | ", row.shown.empty() ? "none" : row.shown, " | ",
                    row.allowed, " | ", row.what, " |\n");
  }
  return table;
}

}  // namespace ringserve
