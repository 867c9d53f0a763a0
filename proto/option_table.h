// The options of a program, in one table: its command line, its environment variables, the keys of
// its YAML file, --help and the reference in deploy/options.md all come from it. A value is taken
// from the flag (--drain-s), else from the environment (RINGSERVE_DRAIN_S; empty counts as not
// given), else from the file (drain-s), else it is the default. Every value that is given is
// checked, also where another one wins. Not thread safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ringserve {

inline constexpr int kExitBadOption = 2;

class OptionTable {
 public:
  struct Program {
    std::string name, what, version;
    std::string footer;  // of --help
  };
  struct Row {
    std::string name;  // of the YAML key; the flag is --name
    std::string kind;  // what --help calls the value; empty: a switch
    std::string what;  // one sentence
    std::string allowed;
    std::function<bool(const std::string&)> set;  // false, and nothing done: not allowed
    std::function<std::string()> get;             // what `set` takes
    std::string shown;                            // the default, as --help says it
    std::string source = "default";               // where the value came from
  };

  explicit OptionTable(Program program) : program_(std::move(program)) {}

  // Each adds an option for `value`, which holds the default and outlives Parse. What is returned
  // is good until the next one.
  Row& Text(const std::string& name, const std::string& kind, std::string& value,
            const std::string& what);
  Row& Switch(const std::string& name, bool& value, const std::string& what);
  // Bytes; "16GiB" is understood.
  Row& Size(const std::string& name, uint64_t least, uint64_t most, uint64_t& value,
            const std::string& what);
  // Finite; above 0 or from 0 on.
  Row& Number(const std::string& name, bool zero, const std::function<double()>& get,
              const std::function<void(double)>& set, const std::string& what);
  Row& OneOf(const std::string& name, const std::vector<std::string>& choices, std::string& value,
             const std::string& what);

  template <typename Integer>
  Row& Whole(const std::string& name, int64_t least, int64_t most, Integer& value,
             const std::string& what) {
    return AddWhole(
        name, least, most, [&value] { return static_cast<int64_t>(value); },
        [&value](int64_t number) { value = static_cast<Integer>(number); }, what);
  }

  // A whole number of `Unit`.
  template <typename Unit>
  Row& Time(const std::string& name, int64_t least, int64_t most, std::chrono::milliseconds& value,
            const std::string& what) {
    return AddWhole(
        name, least, most, [&value] { return std::chrono::duration_cast<Unit>(value).count(); },
        [&value](int64_t count) { value = Unit(count); }, what);
  }

  template <typename Enum>
  Row& Choice(const std::string& name, const std::map<std::string, Enum>& choices, Enum& value,
              const std::string& what) {
    std::string names;
    for (const auto& [choice, meaning] : choices) {
      absl::StrAppend(&names, names.empty() ? "one of " : ", ", choice);
    }
    return Add({.name = name,
                .kind = "NAME",
                .what = what,
                .allowed = names,
                .set =
                    [=, &value](const std::string& text) {
                      const auto choice = choices.find(text);
                      if (choice != choices.end()) value = choice->second;
                      return choice != choices.end();
                    },
                .get =
                    [=, &value] {
                      for (const auto& [choice, meaning] : choices) {
                        if (meaning == value) return choice;
                      }
                      return std::string();
                    }});
  }

  // Adds a flag of the command line alone: Parse does it instead of all that follows, and the
  // process is to exit with 0.
  void Action(const std::string& name, const std::string& what, std::function<void()> act) {
    actions_.push_back({name, what, std::move(act)});
  }

  // Sets all options. `check` says afterwards what single options cannot. Nothing: go on. Else the
  // process is to exit with this status at once: 0 after --help, --version, --print-config and
  // actions; kExitBadOption after one line on stderr that names where, what and what is allowed.
  std::optional<int> Parse(int argc, const char* const* argv,
                           const std::function<absl::Status()>& check);

  // What is in force, as a YAML file that can be read back; behind each value, where it came from.
  std::string Config() const;

  // The table as Markdown.
  std::string Markdown() const;

 private:
  struct ActionFlag {
    std::string name, what;
    std::function<void()> act;
  };

  Row& Add(Row row);
  Row& AddWhole(const std::string& name, int64_t least, int64_t most,
                const std::function<int64_t()>& get, const std::function<void(int64_t)>& set,
                const std::string& what);
  Row* Find(const std::string& name);
  std::string Nearest(const std::string& name) const;
  std::string NoOption(const std::string& argument) const;
  absl::Status ReadFile(const std::string& path);
  absl::Status ReadEnvironment();

  const Program program_;
  std::vector<Row> rows_;
  std::vector<ActionFlag> actions_;
};

}  // namespace ringserve
