// The demo's task and its judge: the answer that dense attention gives is what counting says, and
// a wrong one is found.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/ringctl/context_task.h"
#include "client/ringctl/demo_text.h"
#include "client/ringctl/follower_count.h"

namespace ringserve {
namespace {

using ::testing::HasSubstr;

struct Answer {
  std::vector<float> out, lse;
};

// Attention by its definition, in double.
Answer DenseAnswer(const ContextTensors& tensors, size_t tokens) {
  Answer answer = {.out = std::vector<float>(kQueryHeads * tokens * kByteValues),
                   .lse = std::vector<float>(kQueryHeads * tokens)};
  std::vector<double> weights(tokens), row(kByteValues);
  for (size_t head = 0; head < kQueryHeads; ++head) {
    const size_t kv_head = head / kSharpness.size();
    for (size_t i = 0; i < tokens; ++i) {
      double sum = 0;
      std::fill(row.begin(), row.end(), 0.0);
      for (size_t j = 0; j <= i; ++j) {
        const float* q = &tensors.q[(head * tokens + i) * kHeadDim];
        const float* k = &tensors.k[(kv_head * tokens + j) * kHeadDim];
        double score = 0;
        for (int d = 0; d < kHeadDim; ++d) score += static_cast<double>(q[d]) * k[d];
        const double weight = std::exp(score / std::sqrt(double{kHeadDim}));
        sum += weight;
        for (int b = 0; b < kByteValues; ++b) {
          row[b] += weight * tensors.v[(kv_head * tokens + j) * kByteValues + b];
        }
      }
      for (int b = 0; b < kByteValues; ++b) {
        answer.out[(head * tokens + i) * kByteValues + b] = static_cast<float>(row[b] / sum);
      }
      answer.lse[head * tokens + i] = static_cast<float>(std::log(sum));
    }
  }
  return answer;
}

// Words drawn from a small vocabulary: contexts of both lengths return, with several followers.
std::string SomeText(size_t bytes) {
  std::mt19937 random(7);
  const std::vector<std::string> words = {"the licence ", "the program ", "you may ", "copies of "};
  std::string text;
  while (text.size() < bytes) text += words[random() % words.size()];
  return text.substr(0, bytes);
}

class Demo : public ::testing::Test {
 protected:
  static constexpr size_t kTokens = 300;

  static void SetUpTestSuite() {
    text_ = new std::string(SomeText(kTokens));
    answer_ = new Answer(DenseAnswer(MakeContextTensors(*text_), kTokens));
  }
  static void TearDownTestSuite() {
    delete text_;
    delete answer_;
  }

  static int64_t Missed(const Answer& answer) {
    int64_t missed = 0;
    for (const ContextVerdict& verdict : JudgeByCounting(*text_, answer.out, answer.lse)) {
      missed += verdict.matched - verdict.right;
    }
    return missed;
  }

  // The last position of the text whose last 12 bytes occurred before.
  static size_t LastMatch() {
    for (size_t at = kTokens - 1; at > 12; --at) {
      const std::string context = text_->substr(at - 11, 12);
      if (text_->find(context) < at - 12) return at;
    }
    ADD_FAILURE() << "no context returns";
    return 0;
  }

  static float* Row(Answer& answer, size_t head, size_t at) {
    return &answer.out[(head * kTokens + at) * kByteValues];
  }

  static std::string* text_;
  static Answer* answer_;
};

std::string* Demo::text_;
Answer* Demo::answer_;

TEST_F(Demo, AttentionByItsDefinitionIsRightAtEveryMatch) {
  for (const ContextVerdict& verdict : JudgeByCounting(*text_, answer_->out, answer_->lse)) {
    EXPECT_GT(verdict.matched, static_cast<int64_t>(kTokens / 3)) << verdict.length;
    EXPECT_EQ(verdict.right, verdict.matched) << verdict.first_miss;
    EXPECT_LT(verdict.worst, kTolerance / 10);
    EXPECT_GT(verdict.far, 0);
    EXPECT_LT(verdict.far, verdict.matched);
    EXPECT_GT(verdict.guessed, verdict.guesses / 2);
  }
}

// An answer to be written by hand: of the heads of context length 6 alone.
class Handwritten {
 public:
  explicit Handwritten(const std::string& text)
      : text_(text),
        answer_{.out = std::vector<float>(kQueryHeads * text.size() * kByteValues),
                .lse = std::vector<float>(kQueryHeads * text.size())} {}

  void Set(size_t at, char byte, double probability, int matches) {
    for (size_t head = 0; head < kSharpness.size(); ++head) {
      answer_.out[(head * text_.size() + at) * kByteValues + byte] =
          static_cast<float>(probability);
      answer_.lse[head * text_.size() + at] = static_cast<float>(
          kSharpness[head] * std::sqrt(double{kHeadDim}) + std::log(double(matches)));
    }
  }

  ContextVerdict Judged() const { return JudgeByCounting(text_, answer_.out, answer_.lse)[0]; }

 private:
  const std::string text_;
  Answer answer_;
};

TEST(FollowerCount, FindsWhatCanBeFoundByHand) {
  const std::string text = "abcdefgabcdefgabcdefh";
  Handwritten answer(text);
  // "abcdef" returns at 12, "bcdefg" at 13, ... and "abcdef" once more at 19; "bcdefh" is new.
  for (size_t at = 12; at < 19; ++at) answer.Set(at, text[at - 6], 1.0, 1);
  answer.Set(19, 'g', 1.0, 2);
  const ContextVerdict verdict = answer.Judged();
  EXPECT_EQ(verdict.length, 6);
  EXPECT_EQ(verdict.matched, 8);
  EXPECT_EQ(verdict.right, 8);
  EXPECT_EQ(verdict.guesses, 8);
  EXPECT_EQ(verdict.guessed, 7);  // g was likely, h came
  EXPECT_EQ(verdict.far, 8);      // a quarter is 5 bytes, the period 7
  EXPECT_TRUE(verdict.first_miss.empty());

  answer.Set(19, 'g', 0.9998, 2);
  EXPECT_EQ(answer.Judged().right, 7);
  EXPECT_THAT(answer.Judged().first_miss, HasSubstr("abcdef"));
  answer.Set(19, 'g', 1.0, 3);
  EXPECT_EQ(answer.Judged().right, 7);
}

TEST(FollowerCount, WeighsFollowersByHowOftenTheyFollowed) {
  const std::string text = "123456a123456a123456b123456";
  Handwritten answer(text);
  const int64_t before = answer.Judged().right;
  answer.Set(text.size() - 1, 'a', 1.0 / 2, 3);
  answer.Set(text.size() - 1, 'b', 1.0 / 2, 3);
  EXPECT_EQ(answer.Judged().right, before);
  answer.Set(text.size() - 1, 'a', 2.0 / 3, 3);
  answer.Set(text.size() - 1, 'b', 1.0 / 3, 3);
  EXPECT_EQ(answer.Judged().right, before + 1);
}

TEST_F(Demo, FindsOneProbabilityThatIsOffInOneHead) {
  const size_t at = LastMatch();
  for (size_t head : {size_t{0}, size_t{kQueryHeads - 1}}) {
    Answer answer = *answer_;
    Row(answer, head, at)[17] += 1.5e-4f;
    EXPECT_EQ(Missed(answer), 1);
    Row(answer, head, at)[17] -= 1.0e-4f;
    EXPECT_EQ(Missed(answer), 0);
  }
}

TEST_F(Demo, FindsWhatIsNotANumber) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Answer answer = *answer_;
    Row(answer, 3, LastMatch())[0] = value;
    EXPECT_EQ(Missed(answer), 1);
  }
}

TEST_F(Demo, FindsAKeyThatWasLeftOutSeenTwiceOrSeenTooEarly) {
  const ContextTensors right = MakeContextTensors(*text_);
  // Byte j's key and value replaced by those of byte 0, which match nothing: left out.
  ContextTensors left_out = right;
  const size_t lost = 60;
  std::copy_n(&right.k[0], kHeadDim, &left_out.k[lost * kHeadDim]);
  EXPECT_GT(Missed(DenseAnswer(left_out, kTokens)), 0);
  // ... by those of its neighbour: one is left out and the other seen twice.
  ContextTensors twice = right;
  std::copy_n(&right.k[(lost + 1) * kHeadDim], kHeadDim, &twice.k[lost * kHeadDim]);
  std::copy_n(&right.v[(lost + 1) * kByteValues], kByteValues, &twice.v[lost * kByteValues]);
  EXPECT_GT(Missed(DenseAnswer(twice, kTokens)), 0);
  // The mask shifted by one: query i sees key i + 1, of the same context.
  ContextTensors early = right;
  for (size_t head = 0; head < kKvHeads; ++head) {
    float* k = &early.k[head * kTokens * kHeadDim];
    float* v = &early.v[head * kTokens * kByteValues];
    std::copy(k + kHeadDim, k + kTokens * kHeadDim, k);
    std::copy(v + kByteValues, v + kTokens * kByteValues, v);
  }
  EXPECT_GT(Missed(DenseAnswer(early, kTokens)), static_cast<int64_t>(kTokens / 4));
}

TEST_F(Demo, FindsRowsThatChangedPlaces) {
  Answer answer = *answer_;
  const size_t at = LastMatch();
  std::swap_ranges(Row(answer, 5, at), Row(answer, 5, at) + kByteValues, Row(answer, 5, at - 1));
  EXPECT_GT(Missed(answer), 0);
}

TEST(ContextCode, DiffersForContextsThatDiffer) {
  std::set<std::array<float, kHeadDim>> codes;
  std::set<std::string> contexts = {""};
  const std::string text = SomeText(2'000);
  for (size_t length = 1; length <= 12; ++length) {
    for (size_t at = 0; at + length <= text.size(); ++at) contexts.insert(text.substr(at, length));
  }
  for (const std::string& context : contexts) codes.insert(ContextCode(context));
  EXPECT_EQ(codes.size(), contexts.size());
}

// What the header's estimate of the leakage rests on.
TEST(ContextCode, ProductsOfDifferentCodesAreAboutNormal) {
  std::vector<std::array<float, kHeadDim>> codes;
  codes.reserve(2'000);
  for (int i = 0; i < 2'000; ++i) codes.push_back(ContextCode("context " + std::to_string(i)));
  double sum = 0, squares = 0, largest = 0;
  int64_t pairs = 0;
  for (size_t a = 0; a < codes.size(); ++a) {
    for (size_t b = 0; b < a; ++b, ++pairs) {
      float dot = 0;
      for (int d = 0; d < kHeadDim; ++d) dot += codes[a][d] * codes[b][d];
      const double z = dot / std::sqrt(double{kHeadDim});
      sum += z;
      squares += z * z;
      largest = std::max(largest, z);
    }
  }
  EXPECT_NEAR(sum / pairs, 0.0, 0.01);
  EXPECT_NEAR(squares / pairs, 1.0, 0.02);
  EXPECT_LT(largest, 6.5);
}

TEST(DemoText, IsTheFirstBytesOfTheFile) {
  const std::string path = ::testing::TempDir() + "demo_text_test";
  std::ofstream(path) << "0123456789";
  auto text = ReadDemoText(path, 4);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->bytes, "0123");
  text = ReadDemoText(path, 40);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->bytes, "0123456789");
  std::ofstream(path, std::ios::trunc).close();
  EXPECT_EQ(ReadDemoText(path, 4).status().code(), absl::StatusCode::kInvalidArgument);
  std::remove(path.c_str());
  EXPECT_EQ(ReadDemoText(path, 4).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadDemoText(::testing::TempDir(), 4).status().code(), absl::StatusCode::kNotFound);
}

TEST(DemoText, IsByDefaultWhatEveryDebianHas) {
  const auto text = ReadDemoText("", 16'384);
  if (!text.ok()) GTEST_SKIP() << text.status();
  EXPECT_EQ(text->bytes.size(), 16'384u);
  EXPECT_THAT(text->bytes, HasSubstr("GNU GENERAL PUBLIC LICENSE"));
}

}  // namespace
}  // namespace ringserve
