// What _context_parallel_shard makes of a BlockMask, held against the tiles of a plan.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "server/plan/plan.h"
#include "server/plan/workload.h"
#include "tests/plan/golden_mask.h"
#include "tests/plan/visible_pairs.h"
#include "tests/support/safetensors.h"

namespace ringserve::test {
namespace {

Plan PlanOf(const nlohmann::json& c) {
  const int64_t length = c.at("seq_length");
  const int ranks = c.at("world_size");
  Plan plan;
  plan.spec.set_batch(c.at("batch"));
  plan.spec.set_q_len(length);
  plan.spec.set_kv_len(length);
  plan.q = plan.kv = GoldenLayout(c.at("balancer"), length, ranks);
  for (int64_t b = 0; b < plan.spec.batch(); ++b)
    plan.bands.push_back(GoldenBands(c.at("mask"), length, b));
  plan.options.set_rotate(v1::ROTATE_METHOD_ALL_TO_ALL);
  plan.reach = MakeWorkload(plan.q, plan.kv, plan.bands, plan.spec.batch()).reach;
  return plan;
}

// By local block of queries, the pairs that a rank sees of each block of permuted keys.
std::vector<std::vector<int64_t>> SeenPairs(const Plan& plan, int rank, int64_t batch_row,
                                            int64_t block) {
  const std::vector<int64_t> place_of_key = InversePermutation(plan.kv.row(batch_row));
  const std::vector<int64_t> place_of_query = InversePermutation(plan.q.row(batch_row));
  int64_t first = 0;
  for (int below = 0; below < rank; ++below) first += plan.q.RowsOf(below, batch_row);
  std::vector<std::vector<int64_t>> pairs(plan.q.RowsOf(rank, batch_row) / block,
                                          std::vector<int64_t>(plan.spec.kv_len() / block));
  for (const v1::Step& step : StepsFor(plan, rank)) {
    for (const v1::Tile& tile : step.tiles()) {
      ForEachPair(plan, rank, batch_row, tile, [&](int64_t q, int64_t k) {
        ++pairs[(place_of_query[q] - first) / block][place_of_key[k] / block];
      });
    }
  }
  return pairs;
}

TEST(BlockMask, IsShardedAsPyTorchDoes) {
  const SafetensorsFile file(GoldenPath("golden/shard.safetensors"));
  const nlohmann::json golden = ReadGoldenJson("golden/shard.json");
  int cases = 0;
  for (const nlohmann::json& c : golden.at("block_mask_cases")) {
    SCOPED_TRACE(c.dump());
    const Plan plan = PlanOf(c);
    const int64_t block = c.at("block_size")[0];
    for (int rank = 0; rank < plan.ranks(); ++rank) {
      std::vector<int32_t> partial, full;
      for (int64_t b = 0; b < plan.spec.batch(); ++b) {
        for (const std::vector<int64_t>& row : SeenPairs(plan, rank, b, block)) {
          full.push_back(std::count(row.begin(), row.end(), block * block));
          partial.push_back(std::count_if(row.begin(), row.end(), [](auto n) { return n > 0; }) -
                            full.back());
        }
      }
      const std::string name = c.at("name").get<std::string>() + "/rank" + std::to_string(rank);
      EXPECT_EQ(partial, file.at(name + "/kv_num_blocks").As<int32_t>()) << rank;
      EXPECT_EQ(full, file.at(name + "/full_kv_num_blocks").As<int32_t>()) << rank;
    }
    ++cases;
  }
  EXPECT_GE(cases, 80);
}

}  // namespace
}  // namespace ringserve::test
