// Masks that a stranger may get wrong: the status names the field, its value and the limit.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/validate.h"
#include "tests/proto/valid_header.h"

namespace ringserve {
namespace {

using testing::HasSubstr;

TEST(ValidateMask, RefusesWhatContradictsItself) {
  ExpectInvalid({
      {[](auto& header) {
         Mask(header);
         header.mutable_spec()->add_masks();
       },
       "spec.masks is 2 entries: none, one, or as many as spec.batch (3)"},
      {[](auto& header) { Mask(header).set_sinks(1); },
       "spec.masks[0].sinks is 1: means nothing without window"},
      {[](auto& header) { Mask(header).set_prefix(1); },
       "spec.masks[0].prefix is 1: means nothing without causal"},
      {[](auto& header) {
         for (int i = 0; i < 3; ++i) header.mutable_spec()->add_masks();
         header.mutable_spec()->mutable_masks(2)->set_q_offset(kMax);
       },
       "spec.masks[2].q_offset is 9223372036854775807: at most 1099511627776"},
  });
}

TEST(ValidateMask, BoundsTheNumberOfMasks) {
  v1::AttendHeader header = ValidHeader();
  header.mutable_spec()->set_batch(65537);
  for (int i = 0; i < 65537; ++i) header.mutable_spec()->add_masks();
  EXPECT_THAT(ValidateHeader(header).ToString(),
              HasSubstr("INVALID_ARGUMENT: spec.masks is 65537 entries: at most 65536"));
  header.mutable_spec()->set_batch(65536);
  header.mutable_spec()->mutable_masks()->RemoveLast();
  EXPECT_TRUE(ValidateHeader(header).ok());
}

TEST(ValidateMask, RefusesDocumentsThatDoNotFit) {
  const auto documents = [](auto& header, const std::vector<int64_t>& q,
                            const std::vector<int64_t>& kv) {
    for (const int64_t length : q) Mask(header).mutable_documents()->add_q_lengths(length);
    for (const int64_t length : kv) Mask(header).mutable_documents()->add_kv_lengths(length);
  };
  ExpectInvalid({
      {[&](auto& header) {
         documents(header, {5, -1}, {});
       },
       "spec.masks[0].documents.q_lengths[1] is -1: at least 0"},
      {[&](auto& header) {
         documents(header, {kMax, kMax}, {});
       },
       "spec.masks[0].documents.q_lengths[0] is 9223372036854775807: at most 2147483647"},
      {[&](auto& header) {
         documents(header, {20, 1}, {});
       },
       "spec.masks[0].documents.q_lengths is 21 in all: at most spec.q_len (20)"},
      {[&](auto& header) {
         documents(header, {1, 2}, {3});
       },
       "spec.masks[0].documents.kv_lengths is 1 entries: as many as q_lengths (2), or none"},
      {[&](auto& header) {
         documents(header, {1, 2}, {20, 11});
       },
       "spec.masks[0].documents.kv_lengths is 31 in all: at most spec.kv_len (30)"},
      {[&](auto& header) { documents(header, {1}, {-3}); },
       "spec.masks[0].documents.kv_lengths[0] is -3: at least 0"},
      {[&](auto& header) {
         header.mutable_spec()->set_kv_len(9);
         documents(header, {10}, {});
       },
       "spec.masks[0].documents.q_lengths (kv_lengths are absent) is 10 in all: at most "
       "spec.kv_len (9)"},
  });
}

TEST(ValidateMask, RefusesBlockMasksOfAnotherSize) {
  const auto blocks = [](auto& header, int64_t q_block, int64_t kv_block, int bytes) {
    v1::BlockMask& mask = *Mask(header).mutable_blocks();
    mask.set_q_block(q_block);
    mask.set_kv_block(kv_block);
    mask.set_bits(std::string(bytes, '\xFF'));
  };
  ExpectInvalid({
      {[&](auto& header) { blocks(header, 0, 1, 0); },
       "spec.masks[0].blocks.q_block is 0: at least 1"},
      {[&](auto& header) { blocks(header, 1, -1, 0); },
       "spec.masks[0].blocks.kv_block is -1: at least 1"},
      {[&](auto& header) { blocks(header, kMax, 1, 0); },
       "spec.masks[0].blocks.q_block is 9223372036854775807: at most 2147483647"},
      // 20 x 30 positions in blocks of 3 x 3: 7 rows of 10 bits, 2 bytes each.
      {[&](auto& header) { blocks(header, 3, 3, 13); },
       "spec.masks[0].blocks.bits is 13 bytes: must be 14 (7 block rows of 10 bits)"},
      {[&](auto& header) { blocks(header, 3, 3, 15); },
       "spec.masks[0].blocks.bits is 15 bytes: must be 14"},
      {[&](auto& header) {
         header.mutable_spec()->set_q_len(kMaxDim);
         header.mutable_spec()->set_kv_len(kMaxDim);
         blocks(header, 1, 1, 1);
       },
       "spec.masks[0].blocks.bits is 1 bytes: must be 576460752034988032"},
  });
}

TEST(ValidateMask, RefusesSlicesOutsideTheSequences) {
  const auto slice = [](auto& header, int64_t q_begin, int64_t q_end, int64_t k_begin,
                        int64_t k_end) -> v1::Slice& {
    v1::Slice& added = *Mask(header).add_slices();
    added.set_q_begin(q_begin);
    added.set_q_end(q_end);
    added.set_k_begin(k_begin);
    added.set_k_end(k_end);
    return added;
  };
  ExpectInvalid({
      {[&](auto& header) { slice(header, -1, 2, 0, 1); },
       "spec.masks[0].slices[0].q_begin is -1: at least 0"},
      {[&](auto& header) { slice(header, 3, 2, 0, 1); },
       "spec.masks[0].slices[0].q_end is 2: at least 3"},
      {[&](auto& header) { slice(header, 0, 21, 0, 1); },
       "spec.masks[0].slices[0].q_end is 21: at most 20"},
      {[&](auto& header) { slice(header, 0, 1, kMax, 1); },
       "spec.masks[0].slices[0].k_begin is 9223372036854775807: at most 30"},
      {[&](auto& header) {
         slice(header, 0, 1, 0, 1);
         slice(header, 0, 1, 2, 31);
       },
       "spec.masks[0].slices[1].k_end is 31: at most 30"},
      {[&](auto& header) { slice(header, 0, 1, 0, 1).set_lo(kMin); },
       "spec.masks[0].slices[0].lo is -9223372036854775808: at least -1099511627776"},
      {[&](auto& header) { slice(header, 0, 1, 0, 1).set_hi(kMax); },
       "spec.masks[0].slices[0].hi is 9223372036854775807: at most 1099511627776"},
      {[&](auto& header) {
         v1::Slice& added = slice(header, 0, 1, 0, 1);
         added.set_lo(2);
         added.set_hi(1);
       },
       "spec.masks[0].slices[0].lo is 2: at most hi (1)"},
  });
}

TEST(ValidateMask, RefusesNegativeSides) {
  ExpectInvalid({
      {[](auto& header) { Mask(header).mutable_window()->set_left(-1); },
       "spec.masks[0].window.left is -1: at least 0"},
      {[](auto& header) { Mask(header).mutable_window()->set_right(kMin); },
       "spec.masks[0].window.right is -9223372036854775808: at least 0"},
  });
}

TEST(ValidateMask, RefusesSlicesThatShareAPair) {
  const auto slice = [](auto& header, int64_t q_end, int64_t k_end) -> v1::Slice& {
    v1::Slice& added = *Mask(header).add_slices();
    added.set_q_end(q_end);
    added.set_k_end(k_end);
    return added;
  };
  ExpectInvalid({
      {[&](auto& header) {
         slice(header, 5, 6);
         slice(header, 20, 2).set_q_begin(6);
         v1::Slice& third = slice(header, 9, 30);
         third.set_q_begin(4);
         third.set_k_begin(5);
       },
       "spec.masks[0].slices[2] shows query 4 key 5, as slices[0] does: slices must be disjoint"},
      {[&](auto& header) {
         slice(header, 20, 30).set_hi(-1);
         slice(header, 20, 30).set_lo(-1);
       },
       "spec.masks[0].slices[1] shows query 1 key 0, as slices[0] does: slices must be disjoint"},
      {[&](auto& header) {
         for (int i = 0; i < 3; ++i) header.mutable_spec()->add_masks();
         for (int i = 0; i < 2; ++i) {
           v1::Slice& twice = *header.mutable_spec()->mutable_masks(1)->add_slices();
           twice.set_q_end(1);
           twice.set_k_end(1);
         }
       },
       "spec.masks[1].slices[1] shows query 0 key 0"},
  });
  // Boxes may meet: pairs may not.
  v1::AttendHeader header = ValidHeader();
  slice(header, 20, 30).set_hi(-1);
  slice(header, 20, 30).set_lo(0);
  slice(header, 0, 30);
  EXPECT_EQ(ValidateHeader(header), absl::OkStatus());
}

}  // namespace
}  // namespace ringserve
