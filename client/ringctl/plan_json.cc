#include "client/ringctl/plan_json.h"

#include "client/ringctl/names.h"

namespace ringserve {
namespace {

using nlohmann::ordered_json;

ordered_json SequenceJson(const v1::SequenceLayout& sequence) {
  ordered_json rows = ordered_json::array();
  for (const v1::RowLayout& row : sequence.rows()) {
    ordered_json ranks = ordered_json::array();
    for (const v1::RankSegments& rank : row.ranks()) {
      ordered_json segments = ordered_json::array();
      for (const v1::Segment& segment : rank.segments())
        segments.push_back({segment.begin(), segment.end()});
      ranks.push_back(std::move(segments));
    }
    rows.push_back(std::move(ranks));
  }
  return rows;
}

}  // namespace

ordered_json LayoutJson(const v1::Layout& layout) {
  return {{"q", SequenceJson(layout.q())}, {"kv", SequenceJson(layout.kv())}};
}

ordered_json PlanJson(const v1::PlanSummary& plan) {
  return {{"balancer", NameOf(plan.balancer())},
          {"rotate", NameOf(plan.rotate())},
          {"workers", plan.workers()},
          {"reason", plan.reason()},
          {"imbalance", plan.imbalance()},
          {"imbalance_total", plan.imbalance_total()},
          {"imbalance_is_bound", plan.imbalance_is_bound()},
          {"work", ordered_json(plan.work())},
          {"bytes", ordered_json(plan.bytes())},
          {"layout", LayoutJson(plan.layout())}};
}

}  // namespace ringserve
