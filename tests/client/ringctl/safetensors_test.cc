#include "client/ringctl/safetensors.h"

#include <sys/stat.h>

#include <cstring>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "client/ringctl/safetensors_header.h"
#include "tests/client/ringctl/scratch_folder.h"
#include "tests/support/safetensors.h"

namespace ringserve {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A file with this header, its length told truly.
std::string FileOf(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &size, 8);
  return bytes + header + data;
}

class Safetensors : public ::testing::Test {
 protected:
  absl::Status ErrorOf(const std::string& content) {
    return SafetensorsFile::Open(folder_.Write("in.safetensors", content)).status();
  }
  test::ScratchFolder folder_;
};

TEST_F(Safetensors, GivesEveryTensorItsBytesInPlace) {
  const auto file = SafetensorsFile::Open(folder_.Write(
      "in.safetensors",
      FileOf(
          R"({"__metadata__":{"format":"pt"},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},)"
          R"("a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
          R"("scalar":{"data_offsets":[11,12],"dtype":"I8","shape":[]},)"
          R"("none":{"dtype":"BF16","shape":[0,7],"data_offsets":[11,11]}}   )",
          "abcdefghXYZs")));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto a = (*file)->Tensor("a");
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(a->dtype, "F32");
  EXPECT_THAT(a->shape, ElementsAre(1, 2));
  EXPECT_EQ(std::memcmp(a->bytes.data(), "abcdefgh", 8), 0);
  EXPECT_EQ((*file)->Tensor("b")->bytes.size(), 3u);
  EXPECT_EQ(std::memcmp((*file)->Tensor("b")->bytes.data(), "XYZ", 3), 0);
  EXPECT_EQ((*file)->Tensor("scalar")->bytes.size(), 1u);
  EXPECT_EQ((*file)->Tensor("none")->bytes.size(), 0u);
  EXPECT_EQ((*file)->tensors().size(), 4u);
}

TEST_F(Safetensors, ReadsWhatTheReferenceImplementationWrote) {
  const std::string path = test::GoldenPath("golden/ring.safetensors");
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const test::SafetensorsFile other(path);
  EXPECT_FALSE((*file)->tensors().empty());
  for (const auto& [name, tensor] : (*file)->tensors()) {
    EXPECT_EQ(tensor.dtype, other.at(name).dtype);
    EXPECT_EQ(tensor.shape, other.at(name).shape);
    ASSERT_EQ(tensor.bytes.size(), other.at(name).bytes.size());
    EXPECT_EQ(std::memcmp(tensor.bytes.data(), other.at(name).bytes.data(), tensor.bytes.size()),
              0);
  }
}

TEST_F(Safetensors, SaysWhichTensorsThereAreWhereOneIsMissing) {
  const auto file = SafetensorsFile::Open(
      folder_.Write("in.safetensors",
                    FileOf(R"({"query":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x")));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto error = (*file)->Tensor("q").status();
  EXPECT_EQ(error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(error.message()),
              AllOf(HasSubstr("in.safetensors"), HasSubstr("\"q\""), HasSubstr("query")));
}

TEST_F(Safetensors, RefusesWhatIsNoRegularFile) {
  EXPECT_EQ(SafetensorsFile::Open(folder_.Path("absent")).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(folder_.Path("")).status().code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(mkfifo(folder_.Path("fifo").c_str(), 0600), 0);
  EXPECT_EQ(SafetensorsFile::Open(folder_.Path("fifo")).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SafetensorsFile::Open("/dev/zero").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(Safetensors, RefusesAHeaderLengthThatLies) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  const auto with_length = [&](uint64_t length) {
    std::string content = FileOf(header, "x");
    std::memcpy(content.data(), &length, 8);
    return content;
  };
  EXPECT_TRUE(ErrorOf(with_length(header.size())).ok());
  EXPECT_THAT(std::string(ErrorOf(with_length(~uint64_t{0})).message()), HasSubstr("100000000"));
  EXPECT_THAT(std::string(ErrorOf(with_length(100'000'001)).message()), HasSubstr("100000000"));
  EXPECT_THAT(std::string(ErrorOf(with_length(100'000'000)).message()), HasSubstr("cut short"));
  EXPECT_THAT(std::string(ErrorOf(with_length(header.size() + 2)).message()),
              HasSubstr("cut short"));
  for (const uint64_t length : {header.size() + 1, header.size() - 1, size_t{1}, size_t{0}})
    EXPECT_EQ(ErrorOf(with_length(length)).code(), absl::StatusCode::kInvalidArgument) << length;
}

TEST_F(Safetensors, RefusesEveryPrefixOfAFile) {
  const std::string whole =
      FileOf(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "01234567");
  EXPECT_TRUE(ErrorOf(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_EQ(ErrorOf(whole.substr(0, size)).code(), absl::StatusCode::kInvalidArgument) << size;
  EXPECT_THAT(std::string(ErrorOf(whole + "8").message()), HasSubstr("9 bytes of data"));
}

struct Malformed {
  const char* header;
  uint64_t data_bytes;
  const char* says;
};

class MalformedHeader : public ::testing::TestWithParam<Malformed> {};

TEST_P(MalformedHeader, IsRefusedByWordsThatNameIt) {
  const auto entries = ParseSafetensorsHeader(GetParam().header, GetParam().data_bytes);
  ASSERT_FALSE(entries.ok());
  EXPECT_EQ(entries.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(entries.status().message()), HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    Corpus, MalformedHeader,
    ::testing::Values(
        Malformed{"", 0, "does not begin with {"}, Malformed{"[]", 0, "does not begin with {"},
        Malformed{" {}", 0, "does not begin with {"}, Malformed{"{", 0, "no JSON"},
        Malformed{"{}{}", 0, "no JSON"}, Malformed{"{\"a\":", 0, "no JSON"},
        Malformed{"{\"\xff\":{}}", 0, "no JSON"}, Malformed{"{}", 1, "1 bytes of data"},
        Malformed{R"({"a":1})", 0, "is 1: must be an object"},
        Malformed{R"({"a":[]})", 0, "must be an object"},
        Malformed{R"({"a":null})", 0, "must be an object"},
        Malformed{R"({"a":{}})", 0, "needs dtype, shape and data_offsets"},
        Malformed{R"({"a":{"dtype":"U8","shape":[1]}})", 1, "needs dtype"},
        Malformed{R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
                  "dtype twice"},
        Malformed{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1,
                  "unknown field \"x\""},
        Malformed{R"({"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1, "must be a string"},
        Malformed{R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1, "must be an array"},
        Malformed{R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "an array"},
        Malformed{R"({"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}})", 1, "an integer"},
        Malformed{R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, "is -1"},
        Malformed{R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1, "is 1.0"},
        Malformed{R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1]}})", 1,
                  "below 2^63"},
        Malformed{R"({"a":{"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,0]}})",
                  0, "more than 2^62 bytes"},
        Malformed{R"({"a":{"dtype":"F64","shape":[1152921504606846976],"data_offsets":[0,0]}})", 0,
                  "more than 2^62 bytes"},
        Malformed{R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1, "whole number"},
        Malformed{R"({"a":{"dtype":"F128","shape":[1],"data_offsets":[0,1]}})", 1,
                  "unknown dtype \"F128\""},
        Malformed{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "two integers"},
        Malformed{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, "two integers"},
        Malformed{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}})", 1, "is -1"},
        Malformed{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1, "must ascend"},
        Malformed{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,2]}})", 1,
                  "within the file's 1 bytes"},
        Malformed{
            R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551615,18446744073709551615]}})",
            1, "within the file's 1 bytes"},
        Malformed{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,2]}})", 2, "takes 4"},
        Malformed{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "must begin at 0"},
        Malformed{R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                  R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                  3, "\"b\" has data_offsets [1, 3]: must begin at 2"},
        Malformed{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                  R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                  2, "\"a\" occurs twice"},
        Malformed{R"({"__metadata__":{"a":1}})", 0, "__metadata__ is 1: must be a string"},
        Malformed{R"({"__metadata__":{"a":{}}})", 0, "must be a string"},
        Malformed{R"({"a":{"dtype":"U8","shape":)"
                  "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"
                  R"(,"data_offsets":[0,1]}})",
                  1, "more than 32 dimensions"}));

TEST(SafetensorsHeader, IsWrittenAsItIsRead) {
  const std::vector<SafetensorsEntry> entries = {{"out", "BF16", {1, 2, 3, 4}, 0, 48},
                                                 {"lse", "F32", {1, 2, 3}, 48, 72}};
  const std::string bytes = WriteSafetensorsHeader(entries);
  EXPECT_EQ(bytes.size() % 8, 0u);
  const auto read = ParseSafetensorsHeader(std::string_view(bytes).substr(8), 72);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, entries);
}

TEST(SafetensorsHeader, EscapesAndShortensAStrangersNames) {
  const std::string name(100'000, 'n');
  const auto error = ParseSafetensorsHeader(absl::StrCat("{\"\\n", name, "\":1}"), 0).status();
  EXPECT_LT(error.message().size(), 300u);
  EXPECT_THAT(std::string(error.message()), HasSubstr("\\n"));
}

TEST(SafetensorsHeader, RefusesDeepNestingAtOnce) {
  const std::string nested = "{\"a\":" + std::string(10'000'000, '[');
  EXPECT_THAT(std::string(ParseSafetensorsHeader(nested, 0).status().message()),
              HasSubstr("must be an object"));
}

}  // namespace
}  // namespace ringserve
