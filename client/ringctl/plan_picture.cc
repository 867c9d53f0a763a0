#include "client/ringctl/plan_picture.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/ringctl/mask_image.h"
#include "client/ringctl/names.h"

namespace ringserve {
namespace {

using Anchor = Drawing::Anchor;
using P = PlanPicture;

constexpr Color kFrame{160, 160, 160};
constexpr int kGap = 4;              // between the mask's square and what is written beside it
constexpr int kLeastBarForGaps = 4;  // pixels
constexpr int kChartTitle = P::kBarHeight + 30, kChartFoot = 6;

// A part of a chart's width.
struct Span {
  int x = 0, width = 0;
};

Span Slot(Span all, int slots, int slot) {
  const int begin = static_cast<int>(int64_t{all.width} * slot / slots);
  const int end = static_cast<int>(int64_t{all.width} * (slot + 1) / slots);
  const int gap = end - begin >= kLeastBarForGaps ? 1 : 0;
  return {all.x + begin, end - begin - gap};
}

int BarHeight(uint64_t work, uint64_t top) {
  if (work == 0 || top == 0) return 0;
  const double share = static_cast<double>(work) / static_cast<double>(top);
  return std::max(1, static_cast<int>(std::lround(share * P::kBarHeight)));
}

// One bar for each rank, side by side, before the longest one's shadow. Where ranks are more than
// pixels, the longest of those that share one.
void AddBars(Drawing& drawing, Span span, int bottom, const std::vector<uint64_t>& work,
             uint64_t top) {
  if (work.empty() || span.width == 0) return;
  const int longest = BarHeight(*std::max_element(work.begin(), work.end()), top);
  if (longest > 0)
    drawing.boxes.push_back({span.x, bottom - longest, span.width, longest, kWaitingColor});
  const int ranks = static_cast<int>(work.size()), slots = std::min(ranks, span.width);
  for (int slot = 0; slot < slots; ++slot) {
    const auto begin = work.begin() + int64_t{ranks} * slot / slots;
    const auto end = work.begin() + int64_t{ranks} * (slot + 1) / slots;
    const auto rank = std::max_element(begin, end);
    const int height = BarHeight(*rank, top);
    if (height == 0) continue;
    const Span bar = Slot(span, slots, slot);
    drawing.boxes.push_back({bar.x, bottom - height, bar.width, height,
                             RankColor(static_cast<int>(rank - work.begin()))});
  }
}

// Numbers under the slots, as many as there is room for.
void AddNumbers(Drawing& drawing, int count, int bottom) {
  const int digits = static_cast<int>(absl::StrCat(std::max(0, count - 1)).size());
  const int fit = P::kChartWidth / ((digits + 1) * Drawing::kCharacterWidth);
  const int every = (count + fit - 1) / fit;
  for (int i = 0; i < count; i += every) {
    const Span slot = Slot({P::kChartX, P::kChartWidth}, count, i);
    drawing.labels.push_back(
        {slot.x + slot.width / 2, bottom + kChartFoot, absl::StrCat(i), Anchor::kMiddle});
  }
}

void AddGround(Drawing& drawing, int bottom) {
  drawing.boxes.push_back({P::kChartX, bottom, P::kChartWidth, 1, kFrame});
}

void AddRankChart(Drawing& drawing, const v1::PlanSummary& plan) {
  const std::vector<uint64_t> work(plan.work().begin(), plan.work().end());
  drawing.labels.push_back(
      {P::kChartX, P::kRankBottom - kChartTitle,
       absl::StrFormat("work per rank: imbalance %.3f", plan.imbalance_total())});
  if (work.empty()) return;
  AddBars(drawing, {P::kChartX, P::kChartWidth}, P::kRankBottom, work,
          *std::max_element(work.begin(), work.end()));
  AddGround(drawing, P::kRankBottom);
  AddNumbers(drawing, static_cast<int>(work.size()), P::kRankBottom);
}

// work[step][rank]
std::vector<std::vector<uint64_t>> WorkOfSteps(const v1::PlanResponse& response) {
  std::vector<std::vector<uint64_t>> work;
  const size_t ranks = static_cast<size_t>(response.ranks_size());
  for (size_t rank = 0; rank < ranks; ++rank) {
    const auto& steps = response.ranks(static_cast<int>(rank)).steps();
    for (int step = 0; step < steps.size(); ++step) {
      if (work.size() <= static_cast<size_t>(step)) work.emplace_back(ranks);
      work[step][rank] = steps[step].work();
    }
  }
  return work;
}

void AddStepChart(Drawing& drawing, const v1::PlanResponse& response) {
  const v1::PlanSummary& plan = response.plan();
  const std::vector<std::vector<uint64_t>> work = WorkOfSteps(response);
  const int title = P::kStepBottom - kChartTitle;
  if (plan.rotate() == v1::ROTATE_METHOD_ALL_GATHER || work.empty()) {
    drawing.labels.push_back({P::kChartX, title, "all-gather: nobody waits between steps"});
    return;
  }
  drawing.labels.push_back(
      {P::kChartX, title,
       absl::StrFormat("work per step and rank: imbalance %s%.3f",
                       plan.imbalance_is_bound() ? "<= " : "", plan.imbalance())});
  uint64_t top = 0;
  for (const std::vector<uint64_t>& step : work)
    top = std::max(top, *std::max_element(step.begin(), step.end()));
  const int steps = static_cast<int>(work.size()), slots = std::min(steps, P::kChartWidth);
  for (int slot = 0; slot < slots; ++slot) {
    const int step = static_cast<int>(int64_t{steps} * slot / slots);
    Span span = Slot({P::kChartX, P::kChartWidth}, slots, slot);
    if (span.width > 3 * kLeastBarForGaps) span.width -= kLeastBarForGaps;
    AddBars(drawing, span, P::kStepBottom, work[step], top);
  }
  AddGround(drawing, P::kStepBottom);
  AddNumbers(drawing, steps, P::kStepBottom);
}

void AddTitle(Drawing& drawing, const v1::AttentionSpec& spec, const v1::PlanSummary& plan) {
  drawing.labels.push_back(
      {24, 20,
       absl::StrCat(
           NameOf(plan.balancer()), ", ", NameOf(plan.rotate()), ", ", plan.workers(),
           plan.workers() == 1 ? " worker" : " workers", ": ",
           absl::StrFormat("imbalance %s%.3f (totals %.3f)", plan.imbalance_is_bound() ? "<= " : "",
                           plan.imbalance(), plan.imbalance_total()))});
  std::string rows = absl::StrCat(spec.q_len(), " queries (down), ", spec.kv_len(),
                                  " keys (across), coloured by the rank that computes them");
  drawing.labels.push_back({24, 46, rows});
  if (spec.batch() > 1) {
    drawing.labels.push_back({24, 72,
                              absl::StrCat("mask and holders: batch row 0 of ", spec.batch(),
                                           "; work: all batch rows")});
  }
}

void AddAxes(Drawing& drawing, const v1::AttentionSpec& spec) {
  const int right = P::kMaskX + P::kSide, below = P::kMaskY + P::kSide;
  const int left = P::kQueryStripX - kGap;
  const int above = P::kKeyStripY - kGap - Drawing::kLineHeight;
  drawing.labels.push_back({P::kMaskX, above, "0"});
  drawing.labels.push_back({P::kMaskX + P::kSide / 2, above, "keys", Anchor::kMiddle});
  drawing.labels.push_back({right, above, absl::StrCat(spec.kv_len()), Anchor::kEnd});
  drawing.labels.push_back({left, P::kMaskY, "0", Anchor::kEnd});
  drawing.labels.push_back({left, P::kMaskY + P::kSide / 2, "queries", Anchor::kEnd});
  drawing.labels.push_back(
      {left, below - Drawing::kLineHeight, absl::StrCat(spec.q_len()), Anchor::kEnd});
  drawing.boxes.push_back({P::kMaskX - 1, P::kMaskY - 1, P::kSide + 2, P::kSide + 2, kFrame});
  drawing.labels.push_back({P::kMaskX, below + 12,
                            "strips: who holds the queries and the keys; grey bars: waiting for "
                            "the longest"});
}

Color FromHue(double hue, double value) {
  const auto channel = [&](double shift) {
    const double k = std::fmod(shift + hue * 6, 6);
    const double share = 1 - 0.65 * std::max(0.0, std::min({k, 4 - k, 1.0}));
    return static_cast<uint8_t>(std::lround(255 * value * share));
  };
  return {channel(5), channel(3), channel(1)};
}

}  // namespace

Color RankColor(int rank) {
  // Ten that are easily told apart; then hues by the golden section, no neighbours alike.
  static constexpr Color kFirst[] = {
      {78, 121, 167}, {242, 142, 43}, {225, 87, 89},  {89, 161, 79},   {176, 122, 161},
      {237, 201, 72}, {23, 190, 207}, {156, 117, 95}, {255, 157, 167}, {118, 183, 178}};
  if (rank < static_cast<int>(std::size(kFirst))) return kFirst[rank];
  double whole;
  return FromHue(std::modf(rank * 0.6180339887498949, &whole), rank % 2 ? 0.65 : 0.9);
}

Drawing DrawPlan(const v1::AttentionSpec& spec, const v1::PlanResponse& response) {
  const v1::PlanSummary& plan = response.plan();
  Drawing drawing{P::kWidth, P::kHeight, {}, {}, {}};
  AddTitle(drawing, spec, plan);
  AddAxes(drawing, spec);
  const Holders queries(plan.layout().q()), keys(plan.layout().kv());
  if (queries.unknown()) {
    drawing.labels.push_back({24, 98,
                              "the layout is too long for the answer: who holds what is "
                              "not shown"});
  } else {
    drawing.pictures.push_back({P::kQueryStripX, P::kMaskY,
                                HoldersImage(queries, spec.q_len(), P::kStripWidth, P::kSide)});
    drawing.pictures.push_back(
        {P::kMaskX, P::kKeyStripY, HoldersImage(keys, spec.kv_len(), P::kSide, P::kStripWidth)});
  }
  // Where queries travel, who holds the key computes.
  const bool queries_travel = plan.rotate() == v1::ROTATE_METHOD_PASS_Q;
  drawing.pictures.push_back(
      {P::kMaskX, P::kMaskY,
       MaskImage(spec, queries_travel ? keys : queries, queries_travel, P::kSide)});
  AddRankChart(drawing, plan);
  AddStepChart(drawing, response);
  return drawing;
}

}  // namespace ringserve
