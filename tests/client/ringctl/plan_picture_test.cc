// The picture of a plan: known masks and layouts, looked at pixel by pixel.
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include "client/ringctl/plan_picture.h"
#include "client/ringctl/small_font.h"
#include "tests/client/ringctl/scratch_folder.h"
#include "tests/support/process.h"

namespace ringserve {

std::ostream& operator<<(std::ostream& out, const Color& color) {
  return out << "rgb(" << int{color.red} << " " << int{color.green} << " " << int{color.blue}
             << ")";
}

namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using P = PlanPicture;

constexpr Color kWhite{255, 255, 255};

Image DecodePng(const std::string& bytes) {
  png_image png = {};
  png.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_memory(&png, bytes.data(), bytes.size()) == 0)
    throw std::runtime_error(png.message);
  png.format = PNG_FORMAT_RGB;
  Image image{static_cast<int>(png.width), static_cast<int>(png.height), {}};
  image.pixels.resize(static_cast<size_t>(image.width) * image.height);
  if (png_image_finish_read(&png, nullptr, image.pixels.data(), 0, nullptr) == 0)
    throw std::runtime_error(png.message);
  return image;
}

v1::AttentionSpec Spec(int64_t q_len, int64_t kv_len) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_len(q_len);
  spec.set_kv_len(kv_len);
  return spec;
}

using Pieces = std::vector<std::vector<std::pair<int64_t, int64_t>>>;

v1::SequenceLayout Sequence(const Pieces& ranks) {
  v1::SequenceLayout sequence;
  v1::RowLayout& row = *sequence.add_rows();
  for (const auto& pieces : ranks) {
    v1::RankSegments& rank = *row.add_ranks();
    for (const auto& [begin, end] : pieces) {
      v1::Segment& segment = *rank.add_segments();
      segment.set_begin(begin);
      segment.set_end(end);
    }
  }
  return sequence;
}

// 8 positions over 2 ranks, causal: rank 0 has 10 pairs, rank 1 has 26, of them 16 in step 1.
v1::PlanResponse Contiguous() {
  v1::PlanResponse response;
  v1::PlanSummary& plan = *response.mutable_plan();
  plan.set_balancer(v1::BALANCER_CONTIGUOUS);
  plan.set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
  plan.set_workers(2);
  *plan.mutable_layout()->mutable_q() = Sequence({{{0, 4}}, {{4, 8}}});
  *plan.mutable_layout()->mutable_kv() = plan.layout().q();
  const uint64_t work[2][2] = {{10, 0}, {10, 16}};
  for (const auto& steps : work) {
    plan.add_work(steps[0] + steps[1]);
    v1::RankSteps& rank = *response.add_ranks();
    for (const uint64_t step : steps) rank.add_steps()->set_work(step);
  }
  plan.set_imbalance(26.0 / 18);
  plan.set_imbalance_total(26.0 / 18);
  return response;
}

v1::AttentionSpec Causal(int64_t length) {
  v1::AttentionSpec spec = Spec(length, length);
  spec.add_masks()->set_causal(true);
  return spec;
}

// The picture as PNG, decoded, and the words in it.
class Seen {
 public:
  Seen(const v1::AttentionSpec& spec, const v1::PlanResponse& response)
      : drawing_(DrawPlan(spec, response)), image_(DecodePng(*EncodePng(drawing_))) {
    queries_ = spec.q_len(), keys_ = spec.kv_len();
  }

  Color At(int x, int y) const { return image_.pixels[int64_t{y} * image_.width + x]; }
  // The middle of what stands for a pair.
  Color Pair(int64_t query, int64_t key) const {
    return At(P::kMaskX + Middle(key, keys_), P::kMaskY + Middle(query, queries_));
  }
  Color QueryHolder(int64_t query) const {
    return At(P::kQueryStripX + 5, P::kMaskY + Middle(query, queries_));
  }
  Color KeyHolder(int64_t key) const {
    return At(P::kMaskX + Middle(key, keys_), P::kKeyStripY + 5);
  }
  std::string Words() const {
    std::string words;
    for (const Drawing::Label& label : drawing_.labels) words += label.text + "\n";
    return words;
  }
  const Image& image() const { return image_; }

 private:
  static int Middle(int64_t position, int64_t length) {
    return static_cast<int>((2 * position + 1) * P::kSide / (2 * length));
  }
  Drawing drawing_;
  Image image_;
  int64_t queries_ = 0, keys_ = 0;
};

TEST(PlanPicture, ShowsEveryVisiblePairInTheColourOfItsQuerysHolder) {
  const Seen seen(Causal(8), Contiguous());
  for (int query = 0; query < 8; ++query) {
    for (int key = 0; key < 8; ++key) {
      const Color expected = key > query ? kWhite : RankColor(query / 4);
      EXPECT_EQ(seen.Pair(query, key), expected) << query << ", " << key;
    }
    EXPECT_EQ(seen.QueryHolder(query), RankColor(query / 4));
  }
}

TEST(PlanPicture, ShowsWhoHoldsTheKeysApartFromWhoHoldsTheQueries) {
  v1::PlanResponse response = Contiguous();
  *response.mutable_plan()->mutable_layout()->mutable_kv() = Sequence({{{0, 1}, {5, 6}}, {{1, 5}}});
  const Seen seen(Spec(8, 6), response);
  for (int key = 0; key < 6; ++key)
    EXPECT_EQ(seen.KeyHolder(key), RankColor(key == 0 || key == 5 ? 0 : 1)) << key;
  EXPECT_EQ(seen.QueryHolder(0), RankColor(0));
  EXPECT_EQ(seen.Pair(0, 3), RankColor(0));
}

TEST(PlanPicture, ColoursPairsByTheirKeysHolderWhereQueriesTravel) {
  v1::PlanResponse response = Contiguous();
  response.mutable_plan()->set_rotate(v1::ROTATE_METHOD_PASS_Q);
  const Seen seen(Causal(8), response);
  EXPECT_EQ(seen.Pair(7, 0), RankColor(0));
  EXPECT_EQ(seen.Pair(7, 7), RankColor(1));
}

TEST(PlanPicture, APixelOfManyPairsIsTheirMean) {
  // Each pixel stands for 2 x 2 pairs; on the diagonal three of four are visible.
  v1::PlanResponse response = Contiguous();
  *response.mutable_plan()->mutable_layout()->mutable_q() = Sequence({{{0, 1024}}});
  const Seen seen(Causal(1024), response);
  const Color rank = RankColor(0);
  const auto mean = [](int visible) { return static_cast<uint8_t>((3 * visible + 255 + 2) / 4); };
  EXPECT_EQ(seen.At(P::kMaskX + 100, P::kMaskY + 100),
            (Color{mean(rank.red), mean(rank.green), mean(rank.blue)}));
  EXPECT_EQ(seen.At(P::kMaskX + 99, P::kMaskY + 100), rank);
  EXPECT_EQ(seen.At(P::kMaskX + 101, P::kMaskY + 100), kWhite);
}

TEST(PlanPicture, ShowsFourSinksAmongAMillionKeys) {
  v1::AttentionSpec spec = Causal(1'000'000);
  spec.mutable_masks(0)->mutable_window()->set_left(1000);
  spec.mutable_masks(0)->set_sinks(4);
  const Seen seen(spec, Contiguous());
  EXPECT_NE(seen.At(P::kMaskX, P::kMaskY + 400), kWhite);
  EXPECT_EQ(seen.At(P::kMaskX + 1, P::kMaskY + 400), kWhite);
}

TEST(PlanPicture, BarsAreAsHighAsTheWorkAndTheRestUpToTheLongestIsGrey) {
  const Seen seen(Causal(8), Contiguous());
  const int left = P::kChartX + P::kChartWidth / 4, right = P::kChartX + 3 * P::kChartWidth / 4;
  EXPECT_EQ(seen.At(left, P::kRankBottom - 1), RankColor(0));
  EXPECT_EQ(seen.At(left, P::kRankBottom - P::kBarHeight * 9 / 26), RankColor(0));
  EXPECT_EQ(seen.At(left, P::kRankBottom - P::kBarHeight * 11 / 26), kWaitingColor);
  EXPECT_EQ(seen.At(left, P::kRankBottom - P::kBarHeight), kWaitingColor);
  EXPECT_EQ(seen.At(right, P::kRankBottom - P::kBarHeight), RankColor(1));
  EXPECT_EQ(seen.At(right, P::kRankBottom - P::kBarHeight - 1), kWhite);
}

TEST(PlanPicture, EachStepOfARingWaitsForItsOwnLongestRank) {
  const Seen seen(Causal(8), Contiguous());
  const int eighth = P::kChartWidth / 8;
  // Step 0: both 10 of the highest 16; nobody waits.
  EXPECT_EQ(seen.At(P::kChartX + eighth, P::kStepBottom - 1), RankColor(0));
  EXPECT_EQ(seen.At(P::kChartX + 3 * eighth, P::kStepBottom - 1), RankColor(1));
  EXPECT_EQ(seen.At(P::kChartX + eighth, P::kStepBottom - P::kBarHeight * 11 / 16), kWhite);
  // Step 1: rank 0 has nothing, rank 1 has 16.
  EXPECT_EQ(seen.At(P::kChartX + 5 * eighth, P::kStepBottom - 1), kWaitingColor);
  EXPECT_EQ(seen.At(P::kChartX + 7 * eighth, P::kStepBottom - P::kBarHeight), RankColor(1));
}

TEST(PlanPicture, SaysTheFigures) {
  v1::PlanResponse response = Contiguous();
  EXPECT_THAT(Seen(Causal(8), response).Words(),
              AllOf(HasSubstr("contiguous, all-to-all, 2 workers: imbalance 1.444 (totals 1.444)"),
                    HasSubstr("8 queries (down), 8 keys (across)"), Not(HasSubstr("batch row"))));
  response.mutable_plan()->set_imbalance_is_bound(true);
  EXPECT_THAT(Seen(Causal(8), response).Words(), HasSubstr("imbalance <= 1.444"));
}

TEST(PlanPicture, SaysThatItShowsTheFirstOfSeveralBatchRows) {
  v1::AttentionSpec spec = Causal(8);
  spec.set_batch(2);
  *spec.add_masks() = v1::Mask();
  const Seen seen(spec, Contiguous());
  EXPECT_THAT(seen.Words(), HasSubstr("batch row 0 of 2"));
  EXPECT_EQ(seen.Pair(0, 7), kWhite);
}

TEST(PlanPicture, SaysThatAnAnswerWithoutALayoutDoesNotShowTheHolders) {
  v1::PlanResponse response = Contiguous();
  response.mutable_plan()->clear_layout();
  const Seen seen(Causal(8), response);
  EXPECT_THAT(seen.Words(), HasSubstr("the layout is too long"));
  EXPECT_EQ(seen.Pair(7, 0), kNobodyColor);
}

TEST(PlanPicture, HasNoStepsToWaitForWhereAllKeysAreGatheredFirst) {
  v1::PlanResponse response = Contiguous();
  response.mutable_plan()->set_rotate(v1::ROTATE_METHOD_ALL_GATHER);
  const Seen seen(Causal(8), response);
  EXPECT_THAT(seen.Words(), HasSubstr("all-gather"));
  EXPECT_EQ(seen.At(P::kChartX + 50, P::kStepBottom - 1), kWhite);
}

TEST(PlanPicture, StandsWorkOfMoreRanksThanPixelsAndOfNone) {
  v1::PlanResponse response = Contiguous();
  response.clear_ranks();
  for (int rank = 2; rank < 1024; ++rank) response.mutable_plan()->add_work(rank == 900 ? 52 : 1);
  for (int rank = 0; rank < 1024; ++rank) {
    v1::RankSteps& steps = *response.add_ranks();
    for (int step = 0; step < 1024; ++step) steps.add_steps()->set_work(step == rank ? 1 : 0);
  }
  const Seen seen(Causal(8), response);
  EXPECT_EQ(seen.At(P::kChartX + 450, P::kRankBottom - P::kBarHeight), RankColor(900));
  for (v1::RankSteps& rank : *response.mutable_ranks()) rank.clear_steps();
  for (uint64_t& work : *response.mutable_plan()->mutable_work()) work = 0;
  EXPECT_EQ(Seen(Causal(8), response).At(P::kChartX + 450, P::kRankBottom - 1), kWhite);
  EXPECT_EQ(Seen(Causal(8), v1::PlanResponse()).image().width, P::kWidth);
}

TEST(PlanPicture, RanksNextToEachOtherDifferInColour) {
  for (int rank = 0; rank < 1024; ++rank) {
    EXPECT_NE(RankColor(rank), RankColor(rank + 1)) << rank;
    EXPECT_NE(RankColor(rank), kWhite) << rank;
  }
}

TEST(PlanPictureFile, SvgIsWellFormedAndHoldsTheSameWords) {
  Drawing drawing = DrawPlan(Causal(8), Contiguous());
  drawing.labels.push_back({0, 0, "a < b && c > d"});
  const test::ScratchFolder folder;
  ASSERT_TRUE(WritePicture(drawing, folder.Path("plan.svg")).ok());
  test::Spawner spawner;
  const auto python = spawner.Start(
      RINGSERVE_PYTHON,
      {"-c",
       "import sys, xml.etree.ElementTree as tree\n"
       "root = tree.parse(sys.argv[1]).getroot()\n"
       "print(root.tag, *(e.text for e in root.iter('{http://www.w3.org/2000/svg}text')), sep='|')",
       folder.Path("plan.svg")});
  ASSERT_EQ(python->WaitForExit(), 0) << python->log();
  EXPECT_THAT(python->output(),
              AllOf(HasSubstr("{http://www.w3.org/2000/svg}svg|"), HasSubstr("|a < b && c > d"),
                    HasSubstr("imbalance 1.444 (totals 1.444)|")));
}

TEST(PlanPictureFile, ReplacesAFileAndLeavesNothingBeside) {
  const test::ScratchFolder folder;
  folder.Write("plan.png", "old");
  ASSERT_TRUE(WritePicture(DrawPlan(Causal(8), Contiguous()), folder.Path("plan.png")).ok());
  EXPECT_EQ(DecodePng(folder.Read("plan.png")).height, P::kHeight);
  EXPECT_THAT(folder.Names(), ElementsAre("plan.png"));
}

TEST(PlanPictureFile, RefusesOtherSuffixesAndPlacesThatCannotBeWritten) {
  const test::ScratchFolder folder;
  const Drawing drawing = DrawPlan(Causal(8), Contiguous());
  for (const char* name : {"plan.gif", "plan", "png", "plan.svg.txt"}) {
    const absl::Status status = WritePicture(drawing, folder.Path(name));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(name), HasSubstr(".svg or .png")));
  }
  const std::string nowhere = folder.Path("absent/plan.svg");
  const absl::Status status = WritePicture(drawing, nowhere);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(nowhere));
  EXPECT_THAT(folder.Names(), IsEmpty());
}

TEST(SmallFont, LettersDiffer) {
  std::set<std::string> shapes;
  for (char letter = ' '; letter <= '~'; ++letter) {
    std::string shape;
    for (int row = 0; row < SmallFont::kHeight; ++row) {
      for (int column = 0; column < SmallFont::kWidth; ++column)
        shape += SmallFont::Inked(letter, column, row) ? '#' : '.';
    }
    EXPECT_TRUE(shapes.insert(shape).second) << letter;
  }
}

}  // namespace
}  // namespace ringserve
