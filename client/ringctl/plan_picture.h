// What a plan looks like: the mask with queries down and keys across, each visible pair in the
// colour of the rank that computes it; who holds which queries (left) and keys (above); and the
// work of each rank, in each step of a ring too, so that an imbalance is seen as grey: waiting.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "client/ringctl/drawing.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

// Where a plan's picture shows what.
struct PlanPicture {
  static constexpr int kWidth = 1280, kHeight = 720;
  // The mask, and the square's side. Pixel (x, y) of it stands for the keys from x * kv_len / kSide
  // and the queries from y * q_len / kSide on; of more than four a side, four evenly spread ones.
  static constexpr int kMaskX = 170, kMaskY = 150, kSide = 512;
  // The strips that show who holds the queries and the keys.
  static constexpr int kStripWidth = 14, kQueryStripX = 150, kKeyStripY = 130;
  // The bars of the ranks and of the steps stand on kBottom, at most kBarHeight high.
  static constexpr int kChartX = 740, kChartWidth = 512, kBarHeight = 180;
  static constexpr int kRankBottom = 350, kStepBottom = 630;
};

// The colour of a rank, and of what waits for others.
Color RankColor(int rank);
inline constexpr Color kWaitingColor{224, 224, 224};
// Of visible pairs where the plan does not say who holds them.
inline constexpr Color kNobodyColor{128, 128, 128};

// `response` is the answer to a request with `spec`. Draws the first batch row, and says so.
Drawing DrawPlan(const v1::AttentionSpec& spec, const v1::PlanResponse& response);

// INVALID_ARGUMENT unless `path` ends in .svg or .png.
absl::Status CheckPicturePath(const std::string& path);

// Writes the file, or leaves what was there. INVALID_ARGUMENT as CheckPicturePath, or `path` is
// something else than a file; else as the system says. Messages begin with `path`.
absl::Status WritePicture(const Drawing& drawing, const std::string& path);

}  // namespace ringserve
