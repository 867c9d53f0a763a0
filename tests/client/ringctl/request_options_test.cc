#include "client/ringctl/request_options.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>
#include <CLI/CLI.hpp>

#include "client/ringctl/mask_file.h"
#include "client/ringctl/names.h"
#include "tests/client/ringctl/scratch_folder.h"

namespace ringserve {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Request {
  v1::AttentionSpec spec;
  v1::AttentionOptions options;
};

// What these arguments make of a request with two batch rows, 400 queries and 300 keys; parse
// errors, too, as statuses.
absl::StatusOr<Request> Parse(std::vector<std::string> arguments) {
  CLI::App app;
  RequestOptions options;
  AddRequestOptions(app, options);
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(error.what());
  }
  Request request;
  request.spec.set_batch(2);
  request.spec.set_q_len(400);
  request.spec.set_kv_len(300);
  const absl::Status status = ApplyRequestOptions(options, request.spec, request.options);
  if (!status.ok()) return status;
  return request;
}

std::string Json(const google::protobuf::Message& message) {
  std::string json;
  EXPECT_TRUE(google::protobuf::util::MessageToJsonString(message, &json).ok());
  return json;
}

TEST(RequestOptions, AreFullAndAutomaticByDefault) {
  const auto request = Parse({});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->spec.masks_size(), 0);
  EXPECT_FALSE(request->spec.has_scale());
  EXPECT_EQ(request->options.balancer(), v1::BALANCER_AUTO);
  EXPECT_EQ(request->options.rotate(), v1::ROTATE_METHOD_AUTO);
  EXPECT_EQ(request->options.workers(), 0);
}

TEST(RequestOptions, EveryOneReachesTheRequest) {
  const auto request =
      Parse({"--mask", "causal", "--q-offset", "-7", "--scale", "0.25", "--balancer", "head-tail",
             "--rotate", "all-gather", "--workers", "3", "--worker-weights", "1,2,0.5",
             "--ptrr-block", "64", "--ptrr-count-blocks"});
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->spec.masks_size(), 1);
  EXPECT_EQ(Json(request->spec.masks(0)), R"({"causal":true,"qOffset":"-7"})");
  EXPECT_EQ(request->spec.scale(), 0.25);
  EXPECT_EQ(request->options.balancer(), v1::BALANCER_HEAD_TAIL);
  EXPECT_EQ(request->options.rotate(), v1::ROTATE_METHOD_ALL_GATHER);
  EXPECT_EQ(request->options.workers(), 3);
  EXPECT_THAT(request->options.worker_weights(), ElementsAre(1, 2, 0.5));
  EXPECT_EQ(request->options.ptrr_block(), 64);
  EXPECT_TRUE(request->options.ptrr_count_blocks());

  const auto aligned = Parse({"--mask", "causal", "--bottom-right"});
  ASSERT_TRUE(aligned.ok()) << aligned.status();
  EXPECT_EQ(Json(aligned->spec.masks(0)), R"({"causal":true,"bottomRight":true})");
}

TEST(RequestOptions, MakeAMaskOfEveryCombination) {
  struct Right {
    std::vector<std::string> arguments;
    const char* mask;
  };
  for (const Right& right : {
           Right{{"--window", "1023,0"}, R"({"window":{"left":"1023","right":"0"}})"},
           Right{{"--window", "1024,"}, R"({"window":{"left":"1024"}})"},
           Right{{"--window", ",0", "--mask", "full"}, R"({"window":{"right":"0"}})"},
           Right{{"--window", ",5", "--q-offset", "-3"},
                 R"({"qOffset":"-3","window":{"right":"5"}})"},
           Right{{"--bottom-right", "--window", "1099511627776,"},
                 R"({"bottomRight":true,"window":{"left":"1099511627776"}})"},
           Right{{"--mask", "causal", "--window", "7,", "--sinks", "4"},
                 R"({"causal":true,"window":{"left":"7"},"sinks":"4"})"},
           Right{{"--mask", "causal", "--prefix", "256"}, R"({"causal":true,"prefix":"256"})"},
           Right{{"--bottom-right", "--alibi", "x"}, R"({"bottomRight":true})"},
           Right{{"--q-offset", "-3", "--alibi", "x"}, R"({"qOffset":"-3"})"},
           Right{{"--documents", "100,0,200"}, R"({"documents":{"qLengths":["100","0","200"]}})"},
           Right{{"--mask", "causal", "--bottom-right", "--window", "8,9", "--sinks", "1",
                  "--prefix", "2", "--documents", "300"},
                 R"({"causal":true,"bottomRight":true,"window":{"left":"8","right":"9"},)"
                 R"("sinks":"1","prefix":"2","documents":{"qLengths":["300"]}})"},
       }) {
    const auto request = Parse(right.arguments);
    ASSERT_TRUE(request.ok()) << request.status();
    ASSERT_EQ(request->spec.masks_size(), 1) << right.mask;
    EXPECT_EQ(Json(request->spec.masks(0)), right.mask);
  }
}

TEST(RequestOptions, SayWhichFlagOfAMaskIsWrong) {
  struct Wrong {
    std::vector<std::string> arguments;
    const char* flag;
    const char* says;
  };
  for (const Wrong& wrong : {
           Wrong{{"--window", "5"}, "--window is 5", "L,R"},
           Wrong{{"--window", "1,2,3"}, "--window is 1,2,3", "L,R"},
           Wrong{{"--window", ""}, "--window is ''", "L,R"},
           Wrong{{"--window", ","}, "--window", "at least one side"},
           Wrong{{"--window", "-1,0"}, "--window", "'-1'"},
           Wrong{{"--window", "1, 2"}, "--window", "' 2'"},
           Wrong{{"--window", "1e3,0"}, "--window", "'1e3'"},
           Wrong{{"--window", "0,1099511627777"}, "--window", "[0, 1099511627776]"},
           Wrong{{"--sinks", "4"}, "--sinks is 4", "--window"},
           Wrong{{"--sinks", "0", "--mask", "causal"}, "--sinks is 0", "--window"},
           Wrong{{"--sinks", "-1", "--window", "1,"}, "--sinks", "-1"},
           Wrong{{"--prefix", "4", "--window", "1,"}, "--prefix is 4", "--mask causal"},
           Wrong{{"--prefix", "x", "--mask", "causal"}, "--prefix", "x"},
           Wrong{{"--documents", ""}, "--documents", "''"},
           Wrong{{"--documents", "100,,100"}, "--documents", "''"},
           Wrong{{"--documents", "100,-1"}, "--documents", "'-1'"},
           Wrong{{"--documents", "2147483648"}, "--documents", "2147483647"},
           Wrong{{"--documents", "401"}, "--documents", "400 queries"},
           Wrong{{"--documents", "200,101"}, "they sum to 301", "300 keys"},
           Wrong{{"--documents", "100", "--q-offset", "3"}, "--q-offset is 3", "--window"},
           Wrong{{"--documents", "100", "--bottom-right"}, "--bottom-right", "--window"},
           Wrong{{"--window", "1,", "--window", "2,"}, "--window", ""},
           Wrong{{"--window", "1,", "--mask-file", "x"}, "--mask-file", "--window"},
           Wrong{{"--sinks", "1", "--mask-file", "x"}, "--mask-file", "--sinks"},
           Wrong{{"--prefix", "1", "--mask-file", "x"}, "--mask-file", "--prefix"},
           Wrong{{"--documents", "1", "--mask-file", "x"}, "--mask-file", "--documents"},
           Wrong{{"--q-offset", "1", "--mask-file", "x"}, "--mask-file", "--q-offset"},
           Wrong{{"--bottom-right", "--mask-file", "x"}, "--mask-file", "--bottom-right"},
           Wrong{{"--mask-file", ""}, "--mask-file", "cannot be opened"},
       }) {
    const absl::Status status = Parse(wrong.arguments).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
        << ::testing::PrintToString(wrong.arguments);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(wrong.flag), HasSubstr(wrong.says)));
  }
}

TEST(RequestOptions, SayWhichFlagAndValueIsWrong) {
  struct Wrong {
    std::vector<std::string> arguments;
    const char* flag;
    const char* value;
  };
  for (const Wrong& wrong : {
           Wrong{{"--mask", "diagonal"}, "--mask", "diagonal"},
           Wrong{{"--scale", "nan"}, "--scale", "nan"},
           Wrong{{"--scale", "inf"}, "--scale", "inf"},
           Wrong{{"--scale", "big"}, "--scale", "big"},
           Wrong{{"--balancer", "tail-head"}, "--balancer", "tail-head"},
           Wrong{{"--balancer", "unspecified"}, "--balancer", "unspecified"},
           Wrong{{"--rotate", "none"}, "--rotate", "none"},
           Wrong{{"--workers", "-1"}, "--workers", "-1"},
           Wrong{{"--workers", "1025"}, "--workers", "1025"},
           Wrong{{"--workers", "two"}, "--workers", "two"},
           Wrong{{"--ptrr-block", "-1"}, "--ptrr-block", "-1"},
           Wrong{{"--worker-weights", "1,nan"}, "--worker-weights", "nan"},
           Wrong{{"--mask", "causal", "--q-offset", "1e3"}, "--q-offset", "1e3"},
           Wrong{
               {"--mask", "causal", "--q-offset", "1099511627777"}, "--q-offset", "1099511627777"},
           Wrong{{"--q-offset", "3"}, "--q-offset", "3"},
           Wrong{{"--mask", "full", "--q-offset", "3"}, "--q-offset", "--mask causal"},
           Wrong{{"--bottom-right"}, "--bottom-right", "--mask causal"},
           Wrong{{"--mask", "causal", "--bottom-right", "--q-offset", "1"},
                 "--bottom-right",
                 "--q-offset"},
           Wrong{{"--mask", "causal", "--mask-file", "x"}, "--mask", "--mask-file"},
           Wrong{{"--mask-file", "/absent.json"}, "--mask-file", "/absent.json"},
       }) {
    const absl::Status status = Parse(wrong.arguments).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << wrong.value;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(wrong.flag), HasSubstr(wrong.value)));
  }
}

TEST(RequestOptions, TakeTheMasksOfAFile) {
  const test::ScratchFolder folder;
  const std::string one = folder.Write("one.json", R"( {"causal": true, "qOffset": "12"} )");
  auto request = Parse({"--mask-file", one});
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->spec.masks_size(), 1);
  EXPECT_EQ(request->spec.masks(0).q_offset(), 12);

  const std::string rows = folder.Write(
      "rows.json", "\n[{\"causal\":true},{\"window\":{\"left\":3},\"bottom_right\":true}]");
  request = Parse({"--mask-file", rows});
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->spec.masks_size(), 2);
  EXPECT_TRUE(request->spec.masks(0).causal());
  EXPECT_EQ(request->spec.masks(1).window().left(), 3);
  EXPECT_TRUE(request->spec.masks(1).bottom_right());

  EXPECT_THAT(std::string(Parse({"--mask-file", one, "--q-offset", "1"}).status().message()),
              HasSubstr("--q-offset"));
  EXPECT_THAT(
      std::string(
          Parse({"--mask-file", folder.Write("three.json", "[{},{},{}]")}).status().message()),
      AllOf(HasSubstr("3 masks"), HasSubstr("(2)")));
}

TEST(MaskFile, IsRefusedByWordsThatNameTheFault) {
  const test::ScratchFolder folder;
  struct Wrong {
    const char* text;
    const char* says;
  };
  for (const Wrong& wrong : {
           Wrong{"", "no JSON"},
           Wrong{"{", "no JSON"},
           Wrong{"{} {}", "no JSON"},
           Wrong{"[{}], \"batch\": 3", "no JSON"},
           Wrong{"3", "no Mask"},
           Wrong{"\"causal\"", "no Mask"},
           Wrong{R"({"casual":true})", "casual"},
           Wrong{R"({"causal":7})", "causal"},
           Wrong{R"({"window":{"middle":1}})", "middle"},
           Wrong{R"([{"causal":true},{"sink":1}])", "sink"},
           Wrong{R"({"causal":true,"causal":false})", "\"causal\" is given twice"},
           Wrong{R"({"documents":{"qLengths":[1],"q_lengths":[2]}})", "is given twice"},
           Wrong{R"({"qOffset":1,"bottomRight":true})", "alignment"},
           Wrong{R"({"qOffset":1.5})", "1.5"},
           Wrong{"[]", "empty"},
       }) {
    const std::string path = folder.Write("mask.json", wrong.text);
    const absl::Status status = ReadMaskFile(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << wrong.text;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr(wrong.says)));
  }
  EXPECT_EQ(ReadMaskFile(folder.Path("")).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Names, FollowFromTheProtocol) {
  EXPECT_EQ(NameOf(v1::BALANCER_HEAD_TAIL), "head-tail");
  EXPECT_EQ(NameOf(v1::ROTATE_METHOD_ALL_TO_ALL), "all-to-all");
  EXPECT_EQ(NameOf(v1::DTYPE_BF16), "bf16");
  EXPECT_EQ(NameOf(static_cast<v1::Balancer>(99)), "value 99");
  EXPECT_THAT(BalancerNames(),
              ElementsAre("auto", "contiguous", "head-tail", "per-document", "ptrr"));
  EXPECT_THAT(RotateMethodNames(), ElementsAre("auto", "all-to-all", "all-gather", "pass-q"));
  EXPECT_THAT(DTypeNames(), ElementsAre("f32", "f64", "bf16", "f16"));
  EXPECT_THAT(TensorLayoutNames(), ElementsAre("bhsd", "bshd"));
  for (const std::string& name : BalancerNames()) EXPECT_EQ(NameOf(*BalancerNamed(name)), name);
  for (const std::string& name : DTypeNames()) EXPECT_EQ(NameOf(*DTypeNamed(name)), name);
  EXPECT_FALSE(RotateMethodNamed("unspecified").has_value());
}

}  // namespace
}  // namespace ringserve
