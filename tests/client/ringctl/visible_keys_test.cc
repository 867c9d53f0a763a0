// The verifier's reading of masks, against hand-drawn pictures: a row per query, # = seen.
#include "client/ringctl/visible_keys.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

namespace ringserve {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Picture(const std::string& json, int64_t q_len, int64_t kv_len) {
  v1::Mask mask;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(json, &mask).ok()) << json;
  std::vector<std::string> rows;
  for (int64_t query = 0; query < q_len; ++query) {
    const VisibleKeys keys(mask, q_len, kv_len, query);
    std::string row;
    for (int64_t key = 0; key < kv_len; ++key) row += keys.Sees(key) ? '#' : '.';
    std::vector<uint8_t> sees(kv_len);
    const int64_t half = kv_len / 2;
    const int64_t count =
        keys.Fill(0, half, sees.data()) + keys.Fill(half, kv_len, sees.data() + half);
    EXPECT_EQ(count, std::count(row.begin(), row.end(), '#'));
    for (int64_t key = 0; key < kv_len; ++key) EXPECT_EQ(sees[key] == 1, row[key] == '#');
    rows.push_back(row);
  }
  return rows;
}

TEST(VisibleKeys, AreAllWithoutAMask) {
  EXPECT_THAT(Picture("{}", 2, 3), ElementsAre("###", "###"));
}

TEST(VisibleKeys, EndAtTheQueryWhereCausal) {
  EXPECT_THAT(Picture(R"({"causal":true})", 3, 4), ElementsAre("#...", "##..", "###."));
}

TEST(VisibleKeys, MoveWithTheAlignment) {
  EXPECT_THAT(Picture(R"({"causal":true,"qOffset":2})", 3, 4), ElementsAre("###.", "####", "####"));
  EXPECT_THAT(Picture(R"({"causal":true,"qOffset":-1})", 3, 4),
              ElementsAre("....", "#...", "##.."));
  EXPECT_THAT(Picture(R"({"causal":true,"bottomRight":true})", 2, 4), ElementsAre("###.", "####"));
  EXPECT_THAT(Picture(R"({"causal":true,"bottomRight":true})", 4, 2),
              ElementsAre("..", "..", "#.", "##"));
}

TEST(VisibleKeys, LieInTheWindow) {
  EXPECT_THAT(Picture(R"({"window":{"left":1,"right":0}})", 4, 4),
              ElementsAre("#...", "##..", ".##.", "..##"));
  EXPECT_THAT(Picture(R"({"window":{"right":1}})", 3, 4), ElementsAre("##..", "###.", "####"));
  EXPECT_THAT(Picture(R"({"window":{"left":0},"causal":true})", 3, 3),
              ElementsAre("#..", ".#.", "..#"));
}

TEST(VisibleKeys, HaveTheSinksWhateverTheWindowSays) {
  EXPECT_THAT(Picture(R"({"window":{"left":0},"sinks":2,"causal":true})", 4, 4),
              ElementsAre("#...", "##..", "###.", "##.#"));
}

TEST(VisibleKeys, HaveThePrefixWhateverCausalSays) {
  EXPECT_THAT(Picture(R"({"causal":true,"prefix":2})", 4, 4),
              ElementsAre("##..", "##..", "###.", "####"));
}

TEST(VisibleKeys, LieInTheDocumentOfTheQueryWhereEverythingCountsFromItsBegin) {
  EXPECT_THAT(Picture(R"({"documents":{"qLengths":[2,0,1]},"causal":true})", 4, 4),
              ElementsAre("#...", "##..", "..#.", "...."));
  EXPECT_THAT(
      Picture(
          R"({"documents":{"qLengths":[1,2],"kvLengths":[2,3]},"causal":true,"bottomRight":true})",
          3, 6),
      ElementsAre("##....", "..##..", "..###."));
  EXPECT_THAT(
      Picture(R"({"documents":{"qLengths":[1,3]},"window":{"left":0,"right":0},"sinks":1})", 4, 4),
      ElementsAre("#...", ".#..", ".##.", ".#.#"));
  EXPECT_THAT(Picture(R"({"documents":{}})", 2, 2), ElementsAre("..", ".."));
}

TEST(VisibleKeys, FollowTheBitsOfTheBlocks) {
  // Block rows 0b01 and 0b10, of 2 x 3: base64 of the bytes 1, 2.
  EXPECT_THAT(Picture(R"({"blocks":{"qBlock":2,"kvBlock":3,"bits":"AQI="}})", 3, 5),
              ElementsAre("###..", "###..", "...##"));
}

TEST(VisibleKeys, LieInOneOfTheSlices) {
  EXPECT_THAT(Picture(R"({"slices":[{"qBegin":0,"qEnd":2,"kBegin":0,"kEnd":2},)"
                      R"({"qBegin":1,"qEnd":4,"kBegin":2,"kEnd":5,"lo":0,"hi":1}]})",
                      4, 5),
              ElementsAre("##...", "###..", "..##.", "...##"));
}

TEST(VisibleKeys, PassEveryConditionGiven) {
  EXPECT_THAT(Picture(R"({"causal":true,"blocks":{"qBlock":2,"kvBlock":3,"bits":"AwM="},)"
                      R"("slices":[{"qBegin":0,"qEnd":4,"kBegin":1,"kEnd":5}]})",
                      4, 5),
              ElementsAre(".....", ".#...", ".##..", ".###."));
}

}  // namespace
}  // namespace ringserve
