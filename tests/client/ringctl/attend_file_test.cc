#include "client/ringctl/attend_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/ringctl/safetensors_writer.h"
#include "tests/client/ringctl/scratch_folder.h"

namespace ringserve {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class AttendFileTest : public ::testing::Test {
 protected:
  absl::StatusOr<AttendFile> Open(const std::vector<SafetensorsWriter::Tensor>& tensors,
                                  v1::TensorLayout layout = v1::TENSOR_LAYOUT_BHSD) {
    const std::string path = folder_.Path("in.safetensors");
    const auto writer = SafetensorsWriter::Create(path, tensors);
    EXPECT_TRUE(writer.ok() && (*writer)->Commit().ok());
    return OpenAttendFile(path, layout);
  }
  std::string ErrorOf(const std::vector<SafetensorsWriter::Tensor>& tensors) {
    const absl::Status status = Open(tensors).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("in.safetensors: "));
    return std::string(status.message());
  }
  test::ScratchFolder folder_;
};

TEST_F(AttendFileTest, SaysTheSpecInEitherLayout) {
  for (const v1::TensorLayout layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
    const bool head_major = layout == v1::TENSOR_LAYOUT_BHSD;
    const auto shape = [&](int64_t heads, int64_t length, int64_t dim) {
      return head_major ? std::vector<int64_t>{2, heads, length, dim}
                        : std::vector<int64_t>{2, length, heads, dim};
    };
    const auto file = Open({{"v", "BF16", shape(2, 9, 16)},
                            {"k", "BF16", shape(2, 9, 32)},
                            {"extra", "I64", {3}},
                            {"q", "BF16", shape(8, 5, 32)}},
                           layout);
    ASSERT_TRUE(file.ok()) << file.status();
    const v1::AttentionSpec& spec = file->spec;
    EXPECT_EQ(spec.batch(), 2);
    EXPECT_EQ(spec.q_heads(), 8);
    EXPECT_EQ(spec.kv_heads(), 2);
    EXPECT_EQ(spec.q_len(), 5);
    EXPECT_EQ(spec.kv_len(), 9);
    EXPECT_EQ(spec.head_dim(), 32);
    EXPECT_EQ(spec.value_dim(), 16);
    EXPECT_EQ(spec.dtype(), v1::DTYPE_BF16);
    EXPECT_EQ(spec.tensor_layout(), layout);
    EXPECT_EQ(file->inputs.q.size(), 2u * 8 * 5 * 32 * 2);
    EXPECT_EQ(file->inputs.v.size(), 2u * 2 * 9 * 16 * 2);
  }
}

TEST_F(AttendFileTest, NamesTheTensorThatDoesNotFit) {
  using Shape = std::vector<int64_t>;
  const Shape ok = {1, 4, 8, 16};
  const auto with = [&](const Shape& q, const Shape& k, const Shape& v, const char* q_type = "F32",
                        const char* k_type = "F32", const char* v_type = "F32") {
    return ErrorOf({{"q", q_type, q}, {"k", k_type, k}, {"v", v_type, v}});
  };
  EXPECT_THAT(ErrorOf({{"q", "F32", ok}, {"k", "F32", ok}}), HasSubstr("no tensor \"v\""));
  EXPECT_THAT(with({4, 8, 16}, ok, ok),
              AllOf(HasSubstr("\"q\""), HasSubstr("[4, 8, 16]"), HasSubstr("4 dimensions")));
  EXPECT_THAT(with(ok, ok, ok, "I32", "I32", "I32"), AllOf(HasSubstr("\"q\""), HasSubstr("I32")));
  EXPECT_THAT(with(ok, ok, ok, "F32", "F16"), AllOf(HasSubstr("\"k\""), HasSubstr("F32")));
  EXPECT_THAT(with(ok, ok, ok, "F32", "F32", "F64"), AllOf(HasSubstr("\"v\""), HasSubstr("F64")));
  EXPECT_THAT(with(ok, {2, 4, 8, 16}, ok), AllOf(HasSubstr("\"k\""), HasSubstr("batch is 2")));
  EXPECT_THAT(with(ok, ok, {2, 4, 8, 16}), AllOf(HasSubstr("\"v\""), HasSubstr("batch is 2")));
  EXPECT_THAT(with(ok, ok, {1, 2, 8, 16}),
              AllOf(HasSubstr("\"v\""), HasSubstr("number of heads is 2")));
  EXPECT_THAT(with(ok, ok, {1, 4, 7, 16}), AllOf(HasSubstr("\"v\""), HasSubstr("length is 7")));
  EXPECT_THAT(with(ok, {1, 4, 8, 15}, ok), AllOf(HasSubstr("\"k\""), HasSubstr("head dim is 15")));
  EXPECT_THAT(with(ok, {1, 3, 8, 16}, {1, 3, 8, 16}),
              AllOf(HasSubstr("\"q\""), HasSubstr("4 heads"), HasSubstr("multiple of the 3")));
  EXPECT_THAT(with(ok, ok, {1, 4, 8, 0}), AllOf(HasSubstr("\"v\""), HasSubstr("value dim")));
  EXPECT_THAT(with({1, 4, 0, 16}, ok, ok), HasSubstr("spec.q_len is 0"));
  EXPECT_THAT(with({1, 4, 8, 2000}, {1, 4, 8, 2000}, ok), HasSubstr("spec.head_dim is 2000"));
  EXPECT_THAT(with({1, 4, 8, 16}, {1, 0, 8, 16}, {1, 0, 8, 16}), HasSubstr("spec.kv_heads is 0"));
}

TEST_F(AttendFileTest, RefusesWhatIsNoSafetensorsFile) {
  const std::string path = folder_.Write("text", "hello, world, this is no tensor");
  const absl::Status status = OpenAttendFile(path, v1::TENSOR_LAYOUT_BHSD).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr("safetensors")));
}

}  // namespace
}  // namespace ringserve
