#include "proto/option_table.h"

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

// One option of every kind, and what parsing made of them.
class OptionTableTest : public testing::Test {
 protected:
  struct Values {
    std::string listen = "127.0.0.1:1";
    bool loud = false;
    int workers = 3;
    milliseconds drain{30'000};
    double rate = 0.1;
    uint64_t memory = 1 << 30;
    std::string format = "text";
    int colour = 1;
    int lists = 0;
  };
  struct Parsed {
    std::optional<int> exit;
    Values values;
    std::string output;  // of both streams
  };

  ~OptionTableTest() override {
    std::filesystem::remove(path_);
    for (const std::string& name : variables_) unsetenv(name.c_str());
  }

  void Setenv(const std::string& name, const std::string& value) {
    variables_.push_back(name);
    setenv(name.c_str(), value.c_str(), 1);
  }

  // The path of a file that holds `text`.
  const std::string& File(const std::string& text) {
    std::ofstream(path_) << text;
    return path_;
  }

  static Parsed Parse(const std::vector<std::string>& arguments) {
    Parsed parsed;
    Values& values = parsed.values;
    OptionTable table({.name = "program", .what = "What it does.", .version = "1.2"});
    table.Text("listen", "ADDRESS", values.listen, "Where it listens");
    table.Switch("loud", values.loud, "Says more");
    table.Whole("max-workers", 1, 9, values.workers, "How many");
    table.Time<seconds>("drain-s", 0, 60, values.drain, "How long");
    table.Number(
        "rate", true, [&] { return values.rate; }, [&](double value) { values.rate = value; },
        "How fast");
    table.Size("memory-bytes", 1, uint64_t{1} << 40, values.memory, "How much").shown = "half";
    table.OneOf("log-format", {"text", "json"}, values.format, "How it logs");
    table.Choice<int>("colour", {{"green", 2}, {"red", 1}}, values.colour, "Its colour");
    table.Action("list-colours", "Says which there are", [&] { ++values.lists; });
    std::vector<const char*> argv = {"program"};
    for (const std::string& argument : arguments) argv.push_back(argument.c_str());
    testing::internal::CaptureStderr();
    testing::internal::CaptureStdout();
    parsed.exit = table.Parse(static_cast<int>(argv.size()), argv.data(), [&] {
      return values.workers == 8 ? absl::InvalidArgumentError("8 is too many") : absl::OkStatus();
    });
    parsed.output = testing::internal::GetCapturedStdout();
    parsed.output += testing::internal::GetCapturedStderr();
    return parsed;
  }

  // One line, and kExitBadOption; else says so.
  static std::string Refusal(const std::vector<std::string>& arguments) {
    const Parsed parsed = Parse(arguments);
    if (parsed.exit != kExitBadOption) return "not refused: " + parsed.output;
    if (std::count(parsed.output.begin(), parsed.output.end(), '\n') != 1) {
      return "not one line: " + parsed.output;
    }
    return parsed.output;
  }

 private:
  const std::string path_ = testing::TempDir() + "option_table." + std::to_string(getpid());
  std::vector<std::string> variables_;
};

TEST_F(OptionTableTest, AFlagWinsOverTheEnvironmentAndThatOverTheFile) {
  const std::string file = File("max-workers: 4\ndrain-s: 4\nrate: 4\n");
  Setenv("RINGSERVE_MAX_WORKERS", "5");
  Setenv("RINGSERVE_DRAIN_S", "5");
  const Parsed parsed = Parse({"--config", file, "--max-workers", "6"});
  ASSERT_FALSE(parsed.exit.has_value()) << parsed.output;
  EXPECT_EQ(parsed.values.workers, 6);
  EXPECT_EQ(parsed.values.drain, seconds(5));
  EXPECT_EQ(parsed.values.rate, 4);
  EXPECT_EQ(parsed.values.listen, "127.0.0.1:1");
}

TEST_F(OptionTableTest, AFileGivesEveryKindOfOption) {
  const Parsed parsed = Parse({"--config", File("listen: 0.0.0.0:7\nloud: true\nmax-workers: 9\n"
                                                "drain-s: 0\nrate: 1e-3\nmemory-bytes: 2GiB\n"
                                                "log-format: json  # for machines\n"
                                                "colour: \"green\"\n")});
  ASSERT_FALSE(parsed.exit.has_value()) << parsed.output;
  EXPECT_EQ(parsed.values.listen, "0.0.0.0:7");
  EXPECT_TRUE(parsed.values.loud);
  EXPECT_EQ(parsed.values.workers, 9);
  EXPECT_EQ(parsed.values.drain, seconds(0));
  EXPECT_EQ(parsed.values.rate, 1e-3);
  EXPECT_EQ(parsed.values.memory, uint64_t{2} << 30);
  EXPECT_EQ(parsed.values.format, "json");
  EXPECT_EQ(parsed.values.colour, 2);
}

TEST_F(OptionTableTest, TheEnvironmentMayNameTheFileAndEmptyVariablesGiveNothing) {
  Setenv("RINGSERVE_CONFIG", File("rate: 7\n"));
  Setenv("RINGSERVE_RATE", "");
  EXPECT_EQ(Parse({}).values.rate, 7);
}

TEST_F(OptionTableTest, AnEmptyFileGivesNothing) {
  EXPECT_FALSE(Parse({"--config", File("")}).exit.has_value());
  EXPECT_FALSE(Parse({"--config", File("# nothing yet\n")}).exit.has_value());
}

TEST_F(OptionTableTest, WhatItPrintsCanBeReadBackAndSaysWhereEachValueCameFrom) {
  Setenv("RINGSERVE_RATE", "0.30000000000000004");
  const std::string file = File("colour: green\nlisten: 'unix:/a # b: \"c\"'\n");
  const Parsed first = Parse({"--config", file, "--loud", "--print-config"});
  ASSERT_EQ(first.exit, 0) << first.output;
  EXPECT_THAT(first.output,
              AllOf(HasSubstr("loud: true  # --loud\n"), HasSubstr("  # RINGSERVE_RATE\n"),
                    HasSubstr("colour: green  # " + file + ":1\n"),
                    HasSubstr("max-workers: 3  # default\n")));
  unsetenv("RINGSERVE_RATE");
  const Parsed again = Parse({"--config", File(first.output)});
  ASSERT_FALSE(again.exit.has_value()) << again.output;
  EXPECT_EQ(again.values.listen, first.values.listen);
  EXPECT_EQ(again.values.rate, first.values.rate);
  EXPECT_EQ(again.values.memory, first.values.memory);
  EXPECT_EQ(again.values.colour, first.values.colour);
  EXPECT_TRUE(again.values.loud);
}

TEST_F(OptionTableTest, AnUnknownNameIsRefusedWithTheNearestOne) {
  EXPECT_THAT(Refusal({"--max-worker=4"}),
              AllOf(HasSubstr("there is no option --max-worker;"), HasSubstr("--max-workers")));
  const std::string file = File("rate: 1\nmax_workers: 4\n");
  EXPECT_THAT(Refusal({"--config", file}),
              AllOf(HasSubstr(file + ":2: there is no option 'max_workers'"),
                    HasSubstr("nearest is 'max-workers'")));
  EXPECT_THAT(Refusal({"stray"}), HasSubstr("'stray' is no option"));
}

TEST_F(OptionTableTest, AWrongValueIsRefusedNamingWhereValueAndWhatIsAllowed) {
  const struct {
    std::string name, value, allowed;
  } kCases[] = {
      {"max-workers", "10", "a whole number from 1 to 9"},
      {"max-workers", "many", "a whole number from 1 to 9"},
      {"drain-s", "1.5", "a whole number from 0 to 60"},
      {"rate", "nan", "a finite number of at least 0"},
      {"memory-bytes", "2 parsecs", "bytes, from 1 to 1099511627776"},
      {"log-format", "xml", "one of text, json"},
      {"colour", "blue", "one of green, red"},
  };
  for (const auto& [name, value, allowed] : kCases) {
    const std::string words = name + ": is '" + value + "': must be " + allowed;
    EXPECT_THAT(Refusal({"--" + name, value}), HasSubstr("--" + words));
    const std::string file = File("\n" + name + ": " + value + "\n");
    EXPECT_THAT(Refusal({"--config", file}), HasSubstr(file + ":2: " + words));
  }
  EXPECT_THAT(Refusal({"--config", File("loud: yes\n")}),
              HasSubstr("loud: is 'yes': must be true or false"));
  Setenv("RINGSERVE_MAX_WORKERS", "0");
  EXPECT_THAT(Refusal({}), HasSubstr("RINGSERVE_MAX_WORKERS: is '0': must be a whole number"));
  EXPECT_THAT(Refusal({"--max-workers", "1"}), HasSubstr("RINGSERVE_MAX_WORKERS: is '0'"))
      << "what is wrong is said, also where another value would win";
}

TEST_F(OptionTableTest, AFileThatIsNoListOfNamesAndValuesIsRefused) {
  const struct {
    std::string text, words;
  } kCases[] = {
      {"max-workers: [1, 2]\n", ":1: max-workers: is a list: must be a whole number"},
      {"rate: 1\nmax-workers: {a: 1}\n", ":2: max-workers: is a map: must be"},
      {"max-workers:\n", ":1: max-workers: is empty: must be"},
      {"rate: 1\nrate: 2\n", ":2: rate: given twice"},
      {"- rate\n", ":1: must be a map"},
      {"rate: 1\n---\nrate: 2\n", "more than one document"},
      {"rate: [1\n", ":2: "},
      {"[rate]: 1\n", ":1: there is no option 'a list'"},
  };
  for (const auto& [text, words] : kCases) {
    EXPECT_THAT(Refusal({"--config", File(text)}), HasSubstr(words)) << text;
  }
  EXPECT_THAT(Refusal({"--config", "/nonexistent/file"}), HasSubstr("'/nonexistent/file'"));
  EXPECT_THAT(Refusal({"--config", "/tmp"}), HasSubstr("--config '/tmp': cannot be read"));
}

TEST_F(OptionTableTest, WhatSingleOptionsCannotSayIsCheckedBeforeAnythingIsPrinted) {
  EXPECT_THAT(Refusal({"--max-workers", "8"}), HasSubstr("8 is too many"));
  EXPECT_THAT(Refusal({"--max-workers", "8", "--print-config"}), HasSubstr("8 is too many"));
}

TEST_F(OptionTableTest, AnOptionGivenTwiceOrWithoutItsValueIsRefused) {
  EXPECT_THAT(Refusal({"--rate", "1", "--rate", "2"}), HasSubstr("--rate"));
  EXPECT_THAT(Refusal({"--rate"}), HasSubstr("--rate"));
}

TEST_F(OptionTableTest, AnActionIsDoneInsteadOfAllElse) {
  const Parsed parsed =
      Parse({"--list-colours", "--max-workers", "8", "--config", "/no/such/file"});
  EXPECT_EQ(parsed.exit, 0);
  EXPECT_EQ(parsed.values.lists, 1);
  EXPECT_EQ(parsed.output, "");
  EXPECT_EQ(Parse({}).values.lists, 0);
  EXPECT_THAT(Refusal({"--list-colours=red"}), HasSubstr("--list-colours"));
  EXPECT_THAT(Parse({"--help"}).output, HasSubstr("Says which there are"));
}

TEST_F(OptionTableTest, HelpAndTheReferenceSayNameVariableDefaultAndSentence) {
  const Parsed help = Parse({"--help"});
  EXPECT_EQ(help.exit, 0);
  EXPECT_THAT(help.output,
              AllOf(HasSubstr("--max-workers N [3] (Env:RINGSERVE_MAX_WORKERS)"),
                    HasSubstr("How many"), HasSubstr("--memory-bytes BYTES [half]"),
                    HasSubstr("--loud (Env:RINGSERVE_LOUD)"), HasSubstr("--print-config")));
  const Parsed reference = Parse({"--help-markdown"});
  EXPECT_EQ(reference.exit, 0);
  EXPECT_THAT(reference.output, HasSubstr("| `--max-workers N` | `RINGSERVE_MAX_WORKERS` | 3 | a "
                                          "whole number from 1 to 9 | How many |\n"));
  EXPECT_EQ(Parse({"--version"}).output, "program 1.2\n");
}

}  // namespace
}  // namespace ringserve
