#include "client/ringctl/extras_options.h"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/ringctl/safetensors_writer.h"
#include "tests/client/ringctl/scratch_folder.h"

namespace ringserve {
namespace {

using ::testing::HasSubstr;

class Extras : public ::testing::Test {
 protected:
  Extras() {
    spec_.set_batch(2);
    spec_.set_q_heads(4);
    spec_.set_kv_heads(2);
    spec_.set_q_len(5);
    spec_.set_kv_len(7);
    spec_.set_head_dim(8);
    spec_.set_dtype(v1::DTYPE_BF16);
  }

  // The path of a file with one tensor of bytes 0, 1, 2, ...
  std::string Write(const std::string& name, const std::string& dtype, std::vector<int64_t> shape) {
    const std::string path = folder_.Path(name + std::to_string(++files_));
    const auto writer = SafetensorsWriter::Create(path, {{name, dtype, std::move(shape)}});
    if (!writer.ok()) throw std::runtime_error(writer.status().ToString());
    uint8_t next = 0;
    for (std::byte& byte : (*writer)->bytes(0)) byte = std::byte{next++};
    if (const absl::Status status = (*writer)->Commit(); !status.ok())
      throw std::runtime_error(status.ToString());
    return path;
  }

  absl::Status Open(const ExtrasOptions& options) {
    opened_ = OpenExtras(options, spec_, inputs_);
    return opened_.status();
  }

  test::ScratchFolder folder_;
  int files_ = 0;
  v1::AttentionSpec spec_;
  AttendInputs inputs_;
  absl::StatusOr<ExtrasFiles> opened_;
};

TEST_F(Extras, AreNoneUnlessAskedFor) {
  const v1::AttentionSpec before = spec_;
  ASSERT_TRUE(Open({}).ok());
  EXPECT_EQ(spec_.SerializeAsString(), before.SerializeAsString());
  EXPECT_TRUE(inputs_.bias.empty() && inputs_.alibi_slopes.empty() && inputs_.sink_logits.empty());
}

TEST_F(Extras, OfTheFilesReachTheRequest) {
  const absl::Status status = Open({.alibi = Write("alibi_slopes", "F32", {4}),
                                    .sink_logits = Write("sink_logits", "F32", {4}),
                                    .bias = Write("bias", "BF16", {2, 1, 5, 7})});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(spec_.alibi_slopes() && spec_.sink_logits());
  EXPECT_EQ(spec_.bias().ShortDebugString(), "per_batch: true");
  ASSERT_EQ(inputs_.alibi_slopes.size(), 16u);
  EXPECT_EQ(inputs_.sink_logits.size(), 16u);
  ASSERT_EQ(inputs_.bias.size(), 2u * 5 * 7 * 2);
  EXPECT_EQ(inputs_.bias[3], std::byte{3});
}

TEST_F(Extras, TakeBooleansOfEitherName) {
  for (const char* dtype : {"BOOL", "U8"}) {
    ASSERT_TRUE(Open({.bias = Write("bias", dtype, {1, 4, 5, 7})}).ok());
    EXPECT_EQ(spec_.bias().ShortDebugString(), "boolean: true per_head: true");
  }
}

TEST_F(Extras, ThatDoNotFitAreRefusedByName) {
  const struct {
    ExtrasOptions options;
    const char* says;
  } kCases[] = {
      {{.alibi = Write("alibi_slopes", "F32", {5})},
       "tensor \"alibi_slopes\" is F32 [5]: must be F32 [4]"},
      {{.alibi = Write("alibi_slopes", "BF16", {4})}, "is BF16 [4]: must be F32 [4]"},
      {{.alibi = Write("slopes", "F32", {4})}, "alibi_slopes"},
      {{.sink_logits = Write("sink_logits", "F32", {1, 4})},
       "tensor \"sink_logits\" is F32 [1, 4]: must be F32 [4], one for each query head"},
      {{.bias = Write("bias", "F32", {1, 1, 5, 7})},
       "tensor \"bias\" is F32 [1, 1, 5, 7]: must be BF16, the dtype of q, or BOOL or U8, and "
       "[1 or 2, 1 or 4, 5, 7]"},
      {{.bias = Write("bias", "BF16", {3, 1, 5, 7})}, "is BF16 [3, 1, 5, 7]: must be"},
      {{.bias = Write("bias", "BF16", {1, 2, 5, 7})}, "is BF16 [1, 2, 5, 7]: must be"},
      {{.bias = Write("bias", "BF16", {1, 1, 7, 5})}, "is BF16 [1, 1, 7, 5]: must be"},
      {{.bias = Write("bias", "BF16", {5, 7})}, "is BF16 [5, 7]: must be"},
      {{.bias = folder_.Path("nowhere")}, "nowhere"},
  };
  for (const auto& [options, says] : kCases) {
    const absl::Status status = Open(options);
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(says));
  }
}

}  // namespace
}  // namespace ringserve
