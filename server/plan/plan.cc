#include "server/plan/plan.h"

#include <algorithm>
#include <optional>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "proto/tensor_shape.h"
#include "server/plan/cost.h"
#include "server/plan/mask.h"
#include "server/plan/memory.h"
#include "server/plan/names.h"
#include "server/plan/workload.h"

namespace ringserve {
namespace {

constexpr uint64_t kMostVisiblePairs = uint64_t{1} << 62;
// One rank's tiles, at most two for a piece and 45 bytes for a tile, must fit into one message.
constexpr int64_t kMostPieces = 65'536;

// One way to cut the sequences.
struct Cutting {
  v1::Balancer balancer = v1::BALANCER_UNSPECIFIED;
  std::string name;
  SequenceLayout q;
  SequenceLayout kv;
};

std::vector<Cutting> CuttingsFor(const v1::AttentionSpec& spec, v1::Balancer balancer, int ranks) {
  const Cutting contiguous{v1::BALANCER_CONTIGUOUS, "contiguous",
                           ContiguousLayout(spec.q_len(), ranks),
                           ContiguousLayout(spec.kv_len(), ranks)};
  const Cutting head_tail{v1::BALANCER_HEAD_TAIL, "head-tail", HeadTailLayout(spec.q_len(), ranks),
                          HeadTailLayout(spec.kv_len(), ranks)};
  if (balancer == v1::BALANCER_CONTIGUOUS) return {contiguous};
  if (balancer == v1::BALANCER_HEAD_TAIL) return {head_tail};
  std::vector<Cutting> cuttings = {contiguous};
  const Cutting even{v1::BALANCER_CONTIGUOUS, "even pieces", EvenLayout(spec.q_len(), ranks),
                     EvenLayout(spec.kv_len(), ranks)};
  if (even.q != contiguous.q || even.kv != contiguous.kv) cuttings.push_back(even);
  if (ranks > 1) cuttings.push_back(head_tail);
  return cuttings;
}

std::vector<v1::RotateMethod> RotatesFor(v1::RotateMethod rotate) {
  if (rotate == v1::ROTATE_METHOD_ALL_TO_ALL || rotate == v1::ROTATE_METHOD_ALL_GATHER)
    return {rotate};
  return {v1::ROTATE_METHOD_ALL_TO_ALL, v1::ROTATE_METHOD_ALL_GATHER};
}

struct Candidate {
  Cutting cutting;
  v1::RotateMethod rotate = v1::ROTATE_METHOD_UNSPECIFIED;
  Cost cost;
  std::vector<uint64_t> work;
  std::vector<int> reach;
  std::vector<uint64_t> peak_bytes;

  int ranks() const { return cutting.q.ranks(); }
  uint64_t largest_peak() const { return *std::max_element(peak_bytes.begin(), peak_bytes.end()); }
};

// What is remembered of a candidate to explain the choice.
struct Tried {
  int ranks = 0;
  std::string cutting;
  v1::RotateMethod rotate = v1::ROTATE_METHOD_UNSPECIFIED;
  double seconds = 0;
  bool fits = true;
};

// Looks at candidates and keeps the best: one that fits in memory, then the cheapest.
class Search {
 public:
  Search(const v1::AttentionSpec& spec, const v1::AttentionOptions& options, const Group& group,
         const Speed& speed, const std::vector<std::vector<Band>>& bands)
      : spec_(spec), options_(options), group_(group), speed_(speed), bands_(bands) {}

  // Every cutting and rotate method that the options allow, over `ranks` workers.
  void Try(int ranks) {
    for (Cutting& cutting : CuttingsFor(spec_, options_.balancer(), ranks)) {
      const Workload workload = MakeWorkload(cutting.q, cutting.kv, bands_, spec_.batch());
      piece_pairs_ += workload.piece_pairs;
      const std::vector<uint64_t> kv_bytes = KvShardBytes(spec_, cutting.kv);
      for (v1::RotateMethod rotate : RotatesFor(options_.rotate())) {
        Consider({cutting, rotate, Estimate(workload, kv_bytes, rotate, speed_), workload.work,
                  workload.reach,
                  PeakBytes(spec_, cutting.q, cutting.kv, bands_, workload, rotate)});
      }
    }
  }

  // The number of workers with the lowest estimate, by branch and bound: no cutting beats perfect
  // balance without exchanges, so only numbers whose perfect time is below the best so far are
  // looked at. Stops early where looking costs too much.
  void TryAnyNumber(uint64_t total_work) {
    const auto perfect_seconds = [&](int ranks) {
      return total_work * speed_.seconds_per_pair / ranks +
             (ranks - 1) * speed_.rank_overhead_seconds;
    };
    std::vector<int> numbers;
    for (int ranks = 1; ranks <= group_.workers; ++ranks) numbers.push_back(ranks);
    std::stable_sort(numbers.begin(), numbers.end(),
                     [&](int a, int b) { return perfect_seconds(a) < perfect_seconds(b); });
    for (int ranks : numbers) {
      const bool found = best_ && Fits(*best_);
      if (found && perfect_seconds(ranks) >= best_->cost.seconds) return;
      if (piece_pairs_ > kMostPiecePairs) break;
      Try(ranks);
    }
    if (!Fits(*best_)) Try(group_.workers);
  }

  bool Fits(const Candidate& candidate) const {
    return group_.memory_bytes == 0 || candidate.largest_peak() <= group_.memory_bytes;
  }
  const Candidate& best() const { return *best_; }

  std::string Reason() const {
    return absl::StrCat(WorkersReason(), "; ", CuttingReason(), "; ", RotateReason());
  }

 private:
  void Consider(Candidate candidate) {
    const bool fits = Fits(candidate);
    tried_.push_back({candidate.ranks(), candidate.cutting.name, candidate.rotate,
                      candidate.cost.seconds, fits});
    if (best_ && fits != Fits(*best_)) {
      if (!fits) return;
    } else if (best_ && !fits) {
      if (candidate.largest_peak() >= best_->largest_peak()) return;
    } else if (best_ && !Cheaper(candidate.cost, best_->cost)) {
      return;
    }
    best_ = std::move(candidate);
  }

  static std::string SecondsOf(const Tried& tried) {
    return tried.fits ? absl::StrFormat("%.3g s", tried.seconds) : "too much memory";
  }

  std::string WorkersReason() const {
    if (options_.workers() > 0) return absl::StrCat("workers ", best_->ranks(), " as asked");
    const Tried* runner_up = nullptr;
    for (const Tried& tried : tried_) {
      if (tried.ranks == best_->ranks()) continue;
      if (!runner_up || std::make_tuple(!tried.fits, tried.seconds) <
                            std::make_tuple(!runner_up->fits, runner_up->seconds)) {
        runner_up = &tried;
      }
    }
    std::string reason = absl::StrFormat("workers %d of %d: %.3g s estimated", best_->ranks(),
                                         group_.workers, best_->cost.seconds);
    if (runner_up)
      absl::StrAppend(&reason, " (", runner_up->ranks, ": ", SecondsOf(*runner_up), ")");
    return reason;
  }

  std::string CuttingReason() const {
    const std::string& chosen = best_->cutting.name;
    if (RotateOrBalancerIsGiven(options_.balancer()))
      return absl::StrCat("balancer ", chosen, " as asked");
    std::vector<std::string> others;
    for (const Tried& tried : tried_) {
      if (tried.ranks != best_->ranks() || tried.rotate != best_->rotate || tried.cutting == chosen)
        continue;
      others.push_back(absl::StrCat(tried.cutting, " ", SecondsOf(tried)));
    }
    std::string reason = absl::StrFormat("balancer %s: imbalance %.3f, %.3g s estimated", chosen,
                                         best_->cost.imbalance, best_->cost.seconds);
    if (!others.empty()) absl::StrAppend(&reason, " (", absl::StrJoin(others, ", "), ")");
    return reason;
  }

  std::string RotateReason() const {
    const std::string chosen = RotateName(best_->rotate);
    if (RotateOrBalancerIsGiven(options_.rotate()))
      return absl::StrCat("rotate ", chosen, " as asked");
    for (const Tried& tried : tried_) {
      if (tried.ranks != best_->ranks() || tried.cutting != best_->cutting.name) continue;
      if (tried.rotate == best_->rotate) continue;
      return absl::StrCat("rotate ", chosen, " (", RotateName(tried.rotate), " ", SecondsOf(tried),
                          ")");
    }
    return absl::StrCat("rotate ", chosen);
  }

  static bool RotateOrBalancerIsGiven(v1::Balancer balancer) {
    return balancer != v1::BALANCER_UNSPECIFIED && balancer != v1::BALANCER_AUTO;
  }
  static bool RotateOrBalancerIsGiven(v1::RotateMethod rotate) {
    return rotate != v1::ROTATE_METHOD_UNSPECIFIED && rotate != v1::ROTATE_METHOD_AUTO;
  }

  const v1::AttentionSpec& spec_;
  const v1::AttentionOptions& options_;
  const Group& group_;
  const Speed& speed_;
  const std::vector<std::vector<Band>>& bands_;
  std::optional<Candidate> best_;
  std::vector<Tried> tried_;
  int64_t piece_pairs_ = 0;
};

absl::Status CheckServed(const v1::AttentionOptions& options) {
  switch (options.balancer()) {
    case v1::BALANCER_UNSPECIFIED:
    case v1::BALANCER_AUTO:
    case v1::BALANCER_CONTIGUOUS:
    case v1::BALANCER_HEAD_TAIL:
      break;
    default:
      return absl::UnimplementedError(absl::StrCat(
          "options.balancer ", BalancerName(options.balancer()), " is not served yet"));
  }
  switch (options.rotate()) {
    case v1::ROTATE_METHOD_UNSPECIFIED:
    case v1::ROTATE_METHOD_AUTO:
    case v1::ROTATE_METHOD_ALL_TO_ALL:
    case v1::ROTATE_METHOD_ALL_GATHER:
      break;
    default:
      return absl::UnimplementedError(
          absl::StrCat("options.rotate ", RotateName(options.rotate()), " is not served yet"));
  }
  return absl::OkStatus();
}

absl::Status CheckWorkers(const v1::AttentionOptions& options, const Group& group) {
  if (group.workers < 1) return absl::UnavailableError("no worker has joined");
  if (options.workers() > group.workers) {
    return absl::UnavailableError(
        absl::StrCat("options.workers is ", options.workers(), ": only ", group.workers,
                     group.workers == 1 ? " worker has joined" : " workers have joined"));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> VisiblePairs(const std::vector<std::vector<Band>>& bands, int64_t batch) {
  absl::uint128 total = 0;
  for (const std::vector<Band>& row : bands) {
    for (const Band& band : row) total += Area(band);
  }
  if (bands.size() == 1) total *= static_cast<uint64_t>(batch);
  if (total > kMostVisiblePairs) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "spec shows %.3g (query, key) pairs over all batch rows: at most 2^62 are served",
        static_cast<double>(total)));
  }
  return static_cast<uint64_t>(total);
}

Plan ToPlan(const Search& search, const v1::AttentionSpec& spec,
            const v1::AttentionOptions& options, std::vector<std::vector<Band>> bands) {
  const Candidate& best = search.best();
  Plan plan;
  plan.spec = spec;
  plan.options = options;
  plan.options.set_balancer(best.cutting.balancer);
  plan.options.set_rotate(best.rotate);
  plan.options.set_workers(best.ranks());
  plan.q = best.cutting.q;
  plan.kv = best.cutting.kv;
  plan.bands = std::move(bands);
  plan.reach = best.reach;
  plan.work = best.work;
  plan.bytes_sent = best.cost.bytes_sent;
  plan.peak_bytes = best.peak_bytes;
  plan.imbalance = best.cost.imbalance;
  plan.imbalance_total = best.cost.imbalance_total;
  plan.imbalance_is_bound = best.cost.imbalance_is_bound;
  plan.estimated_seconds = best.cost.seconds;
  plan.reason = search.Reason();
  return plan;
}

}  // namespace

absl::StatusOr<Plan> MakePlan(const v1::AttentionSpec& spec, const v1::AttentionOptions& options,
                              const Group& group, const v1::Measurements& measurements) {
  if (const absl::Status served = CheckServed(options); !served.ok()) return served;
  if (const absl::Status enough = CheckWorkers(options, group); !enough.ok()) return enough;
  v1::AttentionSpec normalized = spec;
  normalized.set_value_dim(ValueDim(spec));
  normalized.set_scale(Scale(spec));
  absl::StatusOr<std::vector<std::vector<Band>>> bands = CompileMasks(normalized);
  if (!bands.ok()) return bands.status();
  const absl::StatusOr<uint64_t> total = VisiblePairs(*bands, spec.batch());
  if (!total.ok()) return total.status();

  const Speed speed = SpeedOf(measurements, normalized);
  Search search(normalized, options, group, speed, *bands);
  if (options.workers() > 0) {
    search.Try(options.workers());
  } else {
    search.TryAnyNumber(*total);
  }
  if (!search.Fits(search.best())) {
    return absl::FailedPreconditionError(
        absl::StrCat("spec needs ", search.best().largest_peak(), " bytes on a worker, limit ",
                     group.memory_bytes, " (cut over ", search.best().ranks(), " of ",
                     group.workers, " workers)"));
  }
  if (const int64_t pieces = search.best().cost.pieces; pieces > kMostPieces) {
    return absl::FailedPreconditionError(
        absl::StrCat("spec.masks cut what one worker does into ", pieces, " pieces (over ",
                     search.best().ranks(), " workers), limit ", kMostPieces,
                     ": fewer batch rows with masks of their own, or fewer workers, make fewer"));
  }
  return ToPlan(search, normalized, options, *std::move(bands));
}

}  // namespace ringserve
