// Headers from strangers: parsing and validation never crash, and a header that is valid can be
// planned. The plan holds every visible pair once.
#include "proto/validate.h"
#include "proto/wire.h"
#include "ringserve/v1/attention.pb.h"
#include "server/plan/memory.h"
#include "server/plan/plan.h"
#include "tests/fuzz/target.h"

namespace ringserve::fuzz {
namespace {

// Larger ones take longer to plan than a fuzzer should wait; sequence lengths do not matter.
constexpr int64_t kMostBatchRows = 8;
constexpr int kMostWorkers = 6;

uint64_t VisiblePairs(const Plan& plan) {
  uint64_t pairs = 0;
  for (int64_t row = 0; row < plan.spec.batch(); ++row) {
    for (const Band& band : plan.bands.size() == 1 ? plan.bands[0] : plan.bands[row])
      pairs += Area(band);
  }
  return pairs;
}

uint64_t PairsOf(const v1::Tile& tile) {
  Band band;
  band.q_end = tile.q_end() - tile.q_begin();
  band.k_end = tile.k_end() - tile.k_begin();
  if (tile.has_lo()) band.lo = tile.lo();
  if (tile.has_hi()) band.hi = tile.hi();
  return Area(band);
}

void CheckLayout(const SequenceLayout& layout, int64_t length, int64_t batch) {
  FUZZ_EXPECT(layout.shared() || static_cast<int64_t>(layout.rows.size()) == batch);
  for (int64_t row = 0; row < batch; ++row) {
    int64_t positions = 0;
    for (int rank = 0; rank < layout.ranks(); ++rank) positions += layout.RowsOf(rank, row);
    FUZZ_EXPECT(positions == length);
  }
}

void CheckPlan(const Plan& plan) {
  CheckLayout(plan.q, plan.spec.q_len(), plan.spec.batch());
  CheckLayout(plan.kv, plan.spec.kv_len(), plan.spec.batch());
  uint64_t work = 0, pairs = 0;
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    work += plan.work[rank];
    for (const v1::Step& step : StepsFor(plan, rank)) {
      for (const v1::Tile& tile : step.tiles())
        pairs += PairsOf(tile) * (tile.batch_row() < 0 ? plan.spec.batch() : 1);
    }
  }
  FUZZ_EXPECT(work == VisiblePairs(plan));
  FUZZ_EXPECT(pairs == work);
  FUZZ_EXPECT(!Describe(plan).empty());
  FUZZ_EXPECT(Summarize(plan).workers() == plan.ranks());
}

void CheckBackward(const v1::AttendHeader& header) {
  if (header.spec().batch() > kMostBatchRows || header.options().workers() > kMostWorkers) return;
  const absl::StatusOr<Plan> plan =
      MakePlan(header.spec(), header.options(), {kMostWorkers, 0}, DefaultMeasurements(),
               {.backward = true, .d_lse = header.d_lse()});
  if (!plan.ok()) {
    FUZZ_EXPECT(plan.status().code() == absl::StatusCode::kFailedPrecondition);
    return;
  }
  CheckPlan(*plan);
  FUZZ_EXPECT(plan->options.rotate() != v1::ROTATE_METHOD_PASS_Q);
  std::vector<uint64_t> bytes(plan->ranks());
  const std::vector<v1::RankSteps> ranks = SummarizeSteps(*plan);
  for (int rank = 0; rank < plan->ranks(); ++rank) {
    for (const v1::RankSteps::Step& step : ranks[rank].steps())
      bytes[rank] = SaturatingAdd(bytes[rank], step.bytes_sent());
  }
  FUZZ_EXPECT(bytes == plan->bytes_sent);
}

// The first byte says how the rest is sliced.
void Check(const uint8_t* data, size_t size) {
  if (size == 0) return;
  const std::string bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  const absl::StatusOr<v1::AttendHeader> header =
      ParseProto<v1::AttendHeader>(Sliced(bytes, data[0]));
  FUZZ_EXPECT(header.ok() == v1::AttendHeader().ParseFromString(bytes));
  if (!header.ok()) return;
  if (ValidateHeader(*header, /*backward=*/true).ok()) CheckBackward(*header);
  const absl::Status valid = ValidateHeader(*header);
  if (!valid.ok()) {
    FUZZ_EXPECT(valid.code() == absl::StatusCode::kInvalidArgument ||
                valid.code() == absl::StatusCode::kUnimplemented);
    FUZZ_EXPECT(!valid.message().empty());
    return;
  }
  FUZZ_EXPECT(ValidateSpec(header->spec()).ok() && ValidateOptions(header->options()).ok());
  if (header->spec().batch() > kMostBatchRows || header->options().workers() > kMostWorkers) {
    return;
  }
  const absl::StatusOr<Plan> plan =
      MakePlan(header->spec(), header->options(), {kMostWorkers, 0}, DefaultMeasurements());
  if (plan.ok()) {
    CheckPlan(*plan);
  } else {
    FUZZ_EXPECT(plan.status().code() == absl::StatusCode::kFailedPrecondition);
  }
}

}  // namespace
}  // namespace ringserve::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ringserve::fuzz::Check(data, size);
  return 0;
}
