// Each rule of the Mask message as bands: what it becomes, how many, and what it costs to get
// there.
#include <string>

#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/validate.h"
#include "server/plan/block_rectangles.h"
#include "server/plan/mask.h"
#include "tests/plan/one_head_spec.h"
#include "tests/support/random.h"

namespace ringserve::test {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int64_t kHuge = int64_t{1} << 40;

v1::AttentionSpec Spec(int64_t q_len, int64_t kv_len, const std::string& mask) {
  v1::AttentionSpec spec = OneHeadSpec(1, q_len, kv_len);
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(mask, spec.add_masks()).ok()) << mask;
  return spec;
}

std::vector<Band> BandsOf(const v1::AttentionSpec& spec) {
  EXPECT_EQ(ValidateSpec(spec), absl::OkStatus());
  const absl::StatusOr<std::vector<std::vector<Band>>> bands = CompileMasks(spec);
  if (!bands.ok()) throw std::runtime_error(bands.status().ToString());
  return bands->at(0);
}

std::vector<Band> BandsOf(int64_t q_len, int64_t kv_len, const std::string& mask) {
  return BandsOf(Spec(q_len, kv_len, mask));
}

Band Full(int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end) {
  return {.q_begin = q_begin, .q_end = q_end, .k_begin = k_begin, .k_end = k_end};
}

TEST(MaskRules, AWindowIsOneBandWithTwoDiagonals) {
  EXPECT_THAT(BandsOf(100, 100, R"({"window":{"left":7,"right":2}})"),
              ElementsAre(Band{.q_end = 100, .k_end = 100, .lo = -7, .hi = 2}));
  EXPECT_THAT(BandsOf(100, 100, R"({"causal":true,"window":{"left":7}})"),
              ElementsAre(Band{.q_end = 100, .k_end = 100, .lo = -7, .hi = 0}));
}

TEST(MaskRules, AWindowFollowsTheAlignment) {
  EXPECT_THAT(BandsOf(10, 30, R"({"window":{"left":3,"right":0},"bottomRight":true})"),
              ElementsAre(Band{.q_end = 10, .k_begin = 17, .k_end = 30, .lo = 17, .hi = 20}));
}

TEST(MaskRules, SinksAreKeysOfTheirOwnThatStayCausal) {
  EXPECT_THAT(
      BandsOf(100, 100, R"({"causal":true,"window":{"left":7},"sinks":4})"),
      ElementsAre(Band{.q_end = 100, .k_end = 4, .hi = 0},
                  Band{.q_begin = 4, .q_end = 100, .k_begin = 4, .k_end = 100, .lo = -7, .hi = 0}));
}

TEST(MaskRules, APrefixIsARectangleBesideTheCausalRest) {
  EXPECT_THAT(BandsOf(100, 100, R"({"causal":true,"prefix":30})"),
              ElementsAre(Full(0, 100, 0, 30),
                          Band{.q_begin = 30, .q_end = 100, .k_begin = 30, .k_end = 100, .hi = 0}));
}

TEST(MaskRules, APrefixIsStillSubjectToTheWindow) {
  EXPECT_THAT(BandsOf(8, 8, R"({"causal":true,"prefix":8,"window":{"left":1,"right":1}})"),
              ElementsAre(Band{.q_end = 8, .k_end = 8, .lo = -1, .hi = 1}));
}

TEST(MaskRules, DocumentsCountFromTheirOwnBegin) {
  EXPECT_THAT(BandsOf(12, 12, R"({"causal":true,"documents":{"qLengths":[4,0,6]}})"),
              ElementsAre(Band{.q_end = 4, .k_end = 4, .hi = 0},
                          Band{.q_begin = 4, .q_end = 10, .k_begin = 4, .k_end = 10, .hi = 0}));
  EXPECT_THAT(BandsOf(12, 12, R"({"causal":true,"prefix":2,"documents":{"qLengths":[4]}})"),
              ElementsAre(Full(0, 4, 0, 2),
                          Band{.q_begin = 2, .q_end = 4, .k_begin = 2, .k_end = 4, .hi = 0}));
}

TEST(MaskRules, BottomRightHoldsInEachDocument) {
  // Queries 2 of 5 keys, then 3 of 1: offsets 3 and -2.
  EXPECT_THAT(BandsOf(5, 6,
                      R"({"causal":true,"bottomRight":true,)"
                      R"("documents":{"qLengths":[2,3],"kvLengths":[5,1]}})"),
              ElementsAre(Band{.q_end = 2, .k_end = 5, .hi = 3}, Full(4, 5, 5, 6)));
}

TEST(MaskRules, PaddingSeesNothingAndIsNotSeen) {
  EXPECT_THAT(BandsOf(10, 10, R"({"documents":{"qLengths":[3]}})"), ElementsAre(Full(0, 3, 0, 3)));
  EXPECT_THAT(BandsOf(10, 10, R"({"documents":{}})"), IsEmpty());
}

TEST(MaskRules, BlocksAreMergedAlongRowsAndThenDown) {
  // 0b0110, 0b0110, 0b1110 in blocks of 2 x 3: bytes 6, 6, 14.
  EXPECT_THAT(BandsOf(6, 12, R"({"blocks":{"qBlock":2,"kvBlock":3,"bits":"BgYO"}})"),
              ElementsAre(Full(0, 4, 3, 9), Full(4, 6, 3, 12)));
}

TEST(MaskRules, BitsPastTheLastBlockMeanNothing) {
  // 2 columns, the second cut short; all 8 bits set.
  EXPECT_THAT(BandsOf(3, 5, R"({"blocks":{"qBlock":2,"kvBlock":4,"bits":"//8="}})"),
              ElementsAre(Full(0, 3, 0, 5)));
}

TEST(MaskRules, BlocksAndSlicesCountFromTheBeginOfEverything) {
  EXPECT_THAT(BandsOf(8, 8,
                      R"({"documents":{"qLengths":[3,5]},)"
                      R"("blocks":{"qBlock":4,"kvBlock":4,"bits":"AQI="}})"),
              ElementsAre(Full(0, 3, 0, 3), Full(3, 4, 3, 4), Full(4, 8, 4, 8)));
  EXPECT_THAT(BandsOf(8, 8,
                      R"({"documents":{"qLengths":[3,5]},)"
                      R"("slices":[{"qBegin":2,"qEnd":6,"kBegin":2,"kEnd":6}]})"),
              ElementsAre(Full(2, 3, 2, 3), Full(3, 6, 3, 6)));
}

TEST(MaskRules, SlicesAreTakenAsTheyAre) {
  EXPECT_THAT(BandsOf(8, 8,
                      R"({"slices":[{"qBegin":4,"qEnd":8,"kBegin":0,"kEnd":8,"lo":-4},)"
                      R"({"qBegin":0,"qEnd":4,"kBegin":0,"kEnd":4,"lo":-1,"hi":1}]})"),
              ElementsAre(Band{.q_end = 4, .k_end = 4, .lo = -1, .hi = 1},
                          Band{.q_begin = 4, .q_end = 8, .k_end = 8, .lo = -4}));
}

TEST(MaskRules, AnEmptySliceShowsNothing) {
  EXPECT_THAT(BandsOf(8, 8, R"({"slices":[{}]})"), IsEmpty());
}

TEST(MaskRules, NumbersBeyondEverythingChangeNothing) {
  const std::string huge = absl::StrCat(kHuge);
  EXPECT_THAT(BandsOf(9, 7, R"({"window":{"left":)" + huge + R"(,"right":)" + huge + "}}"),
              ElementsAre(Full(0, 9, 0, 7)));
  EXPECT_THAT(BandsOf(9, 7, R"({"causal":true,"prefix":)" + huge + "}"),
              ElementsAre(Full(0, 9, 0, 7)));
  EXPECT_THAT(BandsOf(9, 7, R"({"window":{"left":0,"right":0},"sinks":)" + huge + "}"),
              ElementsAre(Full(0, 9, 0, 7)));
  // A window that hides nothing needs no band for its sinks.
  EXPECT_THAT(BandsOf(9, 7, R"({"window":{"left":9,"right":9},"sinks":2})"),
              ElementsAre(Full(0, 9, 0, 7)));
}

TEST(MaskRules, NothingOverflowsAtTheLargestLengths) {
  const int64_t most = 2'147'483'647;
  const std::string huge = absl::StrCat(kHuge);
  v1::AttentionSpec spec = Spec(most, most, R"({"causal":true,"qOffset":)" + huge + "}");
  EXPECT_THAT(BandsOf(spec), ElementsAre(Full(0, most, 0, most)));
  spec.mutable_masks(0)->set_q_offset(-kHuge);
  EXPECT_THAT(BandsOf(spec), IsEmpty());
  spec.mutable_masks(0)->mutable_window()->set_left(kHuge);
  spec.mutable_masks(0)->mutable_window()->set_right(kHuge);
  EXPECT_THAT(BandsOf(spec), IsEmpty());
  // The last query's window begins at the first key.
  spec.mutable_masks(0)->set_causal(false);
  spec.mutable_masks(0)->mutable_window()->set_right(kHuge - most + 1);
  EXPECT_THAT(BandsOf(spec), ElementsAre(Full(most - 1, most, 0, 1)));
  spec.mutable_masks(0)->set_q_offset(kHuge);
  spec.mutable_masks(0)->mutable_documents()->add_q_lengths(0);
  spec.mutable_masks(0)->mutable_documents()->add_q_lengths(most);
  EXPECT_EQ(BandsOf(spec).size(), 1u);
}

TEST(MaskRules, AMillionTokensInTenThousandDocumentsAreCompiled) {
  v1::AttentionSpec spec = Spec(1'000'000, 1'000'000,
                                R"({"causal":true,"window":{"left":63},)"
                                R"("sinks":2,"prefix":5})");
  for (int i = 0; i < 10'000; ++i)
    spec.mutable_masks(0)->mutable_documents()->add_q_lengths(50 + i % 100);
  v1::BlockMask& blocks = *spec.mutable_masks(0)->mutable_blocks();
  blocks.set_q_block(1'000);
  blocks.set_kv_block(1'000);
  Random random(1);
  for (int i = 0; i < 1'000 * 125; ++i) *blocks.mutable_bits() += static_cast<char>(random.Bits());
  const std::vector<Band> bands = BandsOf(spec);
  EXPECT_GT(bands.size(), 10'000u);
}

v1::AttentionSpec Alternating(int64_t rows, int64_t columns) {
  v1::AttentionSpec spec = Spec(rows, columns, R"({"blocks":{"qBlock":1,"kvBlock":1}})");
  std::string& bits = *spec.mutable_masks(0)->mutable_blocks()->mutable_bits();
  for (int64_t row = 0; row < rows; ++row)  // no run is the one above
    bits += std::string((columns + 7) / 8, row % 2 == 0 ? '\x55' : '\xAA');
  return spec;
}

TEST(MaskRules, MoreBandsThanTheLimitAreRefusedWithBothNumbers) {
  EXPECT_EQ(BandsOf(Alternating(512, 1024)).size(), size_t{kMostBands});
  const absl::Status status = CompileMasks(Alternating(513, 1024)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr("spec.masks[0]"), HasSubstr("blocks make 262656 bands, limit 262144")));

  v1::AttentionSpec documents = Spec(600'000, 600'000, R"({"causal":true,"prefix":1})");
  for (int i = 0; i < 200'000; ++i)
    documents.mutable_masks(0)->mutable_documents()->add_q_lengths(3);
  EXPECT_THAT(std::string(CompileMasks(documents).status().message()),
              HasSubstr("documents make 400000 bands, limit 262144"));
}

TEST(MaskRules, ABlockRowOfMoreRunsThanTheLimitIsRefused) {
  EXPECT_THAT(std::string(CompileMasks(Alternating(1, 1'000'000)).status().message()),
              HasSubstr("blocks make 500000 bands, limit 262144"));
}

// Columns against single pairs anywhere: no order of the pairs keeps a column away from most.
TEST(MaskRules, MoreComparisonsThanTheLimitAreRefusedWithBothNumbers) {
  constexpr int64_t kRows = 60'000;
  v1::AttentionSpec spec = Spec(kRows, kRows, R"({"blocks":{"qBlock":60000,"kvBlock":10}})");
  v1::Mask& mask = *spec.mutable_masks(0);
  mask.mutable_blocks()->set_bits(std::string(750, '\x55'));
  Random random(1);
  for (int64_t row = 0; row < kRows; ++row) {
    v1::Slice& slice = *mask.add_slices();
    const int64_t key = random.Between(0, kRows - 1);
    slice.set_q_begin(row);
    slice.set_q_end(row + 1);
    slice.set_k_begin(key);
    slice.set_k_end(key + 1);
  }
  EXPECT_EQ(ValidateSpec(spec), absl::OkStatus());
  const absl::Status status = CompileMasks(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("spec.masks[0].slices"), HasSubstr("comparisons, limit 67108864")));
}

TEST(MaskRules, AllBatchRowsTogetherHaveTheLimit) {
  v1::AttentionSpec spec = Alternating(512, 1024);
  spec.set_batch(2);
  *spec.add_masks() = spec.masks(0);
  EXPECT_THAT(*CompileMasks(spec), SizeIs(1));  // the same: counted once
  spec.mutable_masks(1)->clear_blocks();
  EXPECT_THAT(std::string(CompileMasks(spec).status().message()),
              HasSubstr("spec.masks[1] and those before it make 262145 bands, limit 262144"));
}

// Narrow slices along the diagonal, whose boxes all meet the documents'.
TEST(MaskRules, DiagonalSlicesOverDocumentsAreNotTriedAgainstEachOther) {
  v1::AttentionSpec spec = Spec(100'000, 100'000, "{}");
  for (int i = 0; i < 5'000; ++i) spec.mutable_masks(0)->mutable_documents()->add_q_lengths(20);
  for (int i = -5'000; i < 5'000; ++i) {
    v1::Slice& slice = *spec.mutable_masks(0)->add_slices();
    slice.set_q_end(100'000);
    slice.set_k_end(100'000);
    slice.set_lo(2 * i);
    slice.set_hi(2 * i);
  }
  // 19 even diagonals, -18 to 18, cross a document of 20.
  EXPECT_EQ(BandsOf(spec).size(), 19u * 5'000);
}

}  // namespace
}  // namespace ringserve::test
