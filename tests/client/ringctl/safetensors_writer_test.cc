#include "client/ringctl/safetensors_writer.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/ringctl/safetensors.h"
#include "tests/client/ringctl/scratch_folder.h"

namespace ringserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::vector<SafetensorsWriter::Tensor> kTensors = {{"out", "BF16", {1, 3}},
                                                         {"lse", "F32", {1}}};

void Fill(SafetensorsWriter& writer) {
  std::memcpy(writer.bytes(0).data(), "abcdef", 6);
  std::memcpy(writer.bytes(1).data(), "WXYZ", 4);
}

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const test::ScratchFolder folder;
  const auto writer = SafetensorsWriter::Create(folder.Path("out"), kTensors);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_EQ((*writer)->bytes(0).size(), 6u);
  ASSERT_EQ((*writer)->bytes(1).size(), 4u);
  Fill(**writer);
  ASSERT_TRUE((*writer)->Commit().ok());
  EXPECT_THAT(folder.Names(), ElementsAre("out"));

  const auto file = SafetensorsFile::Open(folder.Path("out"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto out = (*file)->Tensor("out");
  EXPECT_EQ(out->dtype, "BF16");
  EXPECT_THAT(out->shape, ElementsAre(1, 3));
  EXPECT_EQ(std::memcmp(out->bytes.data(), "abcdef", 6), 0);
  EXPECT_EQ(std::memcmp((*file)->Tensor("lse")->bytes.data(), "WXYZ", 4), 0);
}

TEST(SafetensorsWriter, LeavesAnOlderFileAloneUntilTheNewOneIsComplete) {
  const test::ScratchFolder folder;
  folder.Write("out", "older");
  {
    const auto writer = SafetensorsWriter::Create(folder.Path("out"), kTensors);
    ASSERT_TRUE(writer.ok()) << writer.status();
    Fill(**writer);
    EXPECT_EQ(folder.Read("out"), "older");
  }
  EXPECT_EQ(folder.Read("out"), "older");
  EXPECT_THAT(folder.Names(), ElementsAre("out"));

  const auto writer = SafetensorsWriter::Create(folder.Path("out"), kTensors);
  ASSERT_TRUE((*writer)->Commit().ok());
  EXPECT_NE(folder.Read("out"), "older");
  EXPECT_THAT(folder.Names(), ElementsAre("out"));
}

TEST(SafetensorsWriter, GivesTheFileTheRightsThatOthersGet) {
  const test::ScratchFolder folder;
  const mode_t mask = umask(027);
  const auto writer = SafetensorsWriter::Create(folder.Path("out"), kTensors);
  ASSERT_TRUE((*writer)->Commit().ok());
  umask(mask);
  struct stat status;
  ASSERT_EQ(stat(folder.Path("out").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
}

TEST(SafetensorsWriter, RefusesToOverwriteAnInputByWhateverName) {
  const test::ScratchFolder folder;
  folder.Write("in", "input");
  std::filesystem::create_symlink("in", folder.Path("link"));
  std::filesystem::create_hard_link(folder.Path("in"), folder.Path("hard"));
  for (const char* name : {"in", "link", "hard"}) {
    const auto error =
        SafetensorsWriter::Create(folder.Path(name), kTensors, {folder.Path("in")}).status();
    EXPECT_EQ(error.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(error.message()), HasSubstr("is the input file"));
  }
  EXPECT_EQ(folder.Read("in"), "input");
}

TEST(SafetensorsWriter, RefusesDestinationsThatCannotBe) {
  const test::ScratchFolder folder;
  const auto code = [&](const std::string& path) {
    return SafetensorsWriter::Create(path, kTensors).status().code();
  };
  EXPECT_EQ(code(folder.Path("absent/out")), absl::StatusCode::kNotFound);
  EXPECT_EQ(code(folder.Path("")), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("/dev/null"), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(""), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(folder.Names(), IsEmpty());
}

TEST(SafetensorsWriter, RefusesTensorsThatTheFormatDoesNotHave) {
  const test::ScratchFolder folder;
  const auto code = [&](const std::vector<SafetensorsWriter::Tensor>& tensors) {
    return SafetensorsWriter::Create(folder.Path("out"), tensors).status().code();
  };
  EXPECT_EQ(code({{"a", "F99", {1}}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"a", "F32", {-1}}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"a", "F32", {1}}, {"a", "F32", {1}}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"__metadata__", "F32", {1}}}), absl::StatusCode::kInvalidArgument);
}

TEST(SafetensorsWriter, SaysBeforehandThatThereIsNoRoom) {
  const test::ScratchFolder folder;
  struct rlimit old;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit low = old;
  low.rlim_cur = 4096;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  const auto error =
      SafetensorsWriter::Create(folder.Path("out"), {{"a", "U8", {100'000}}}).status();
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(error.ok());
  EXPECT_THAT(std::string(error.message()), HasSubstr("cannot reserve"));
  EXPECT_THAT(folder.Names(), IsEmpty());
}

}  // namespace
}  // namespace ringserve
