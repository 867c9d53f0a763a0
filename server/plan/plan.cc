#include "server/plan/plan.h"

#include <algorithm>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "proto/protocol.h"
#include "proto/tensor_shape.h"
#include "server/plan/cost.h"
#include "server/plan/cutting.h"
#include "server/plan/mask.h"
#include "server/plan/memory.h"
#include "server/plan/names.h"
#include "server/plan/tile_cost.h"
#include "server/plan/workload.h"

namespace ringserve {
namespace {

constexpr uint64_t kMostVisiblePairs = uint64_t{1} << 62;
// One rank's tiles, at most one for a piece and 45 bytes for a tile, must fit into one message.
constexpr int64_t kMostPieces = 131'072;
// What `auto` may spend on one layout, and what a way to cut must be able to gain to be looked at:
// per-document and PTRR layouts cost far more to look at than the others.
constexpr int64_t kMostAutoLayout = int64_t{1} << 18;
constexpr double kWorthALook = 0.01;
// The tiles of all ranks are made to tell what they cost where these are so few, and so few
// segments and bands are looked through for them.
constexpr int64_t kMostPiecesTimed = 8'192;
constexpr int64_t kMostLookedThrough = 1 << 17;

// Would all queries and what comes back for them be fewer bytes than all keys and values? Then
// `auto` looks at pass-Q, too, which takes a workload of its own.
bool QueriesAreLighter(const v1::AttentionSpec& spec) {
  const double element = ElementBytes(spec.dtype()), accumulated = LseElementBytes(spec.dtype());
  const double d = spec.head_dim(), dv = ValueDim(spec);
  return spec.q_len() * (spec.q_heads() * (d * element + (dv + 1) * accumulated)) <
         spec.kv_len() * (spec.kv_heads() * (d + dv) * element);
}

std::vector<v1::RotateMethod> RotatesFor(v1::RotateMethod rotate, const v1::AttentionSpec& spec,
                                         Pass pass) {
  if (rotate > v1::ROTATE_METHOD_AUTO) return {rotate};
  std::vector<v1::RotateMethod> rotates = {v1::ROTATE_METHOD_ALL_TO_ALL,
                                           v1::ROTATE_METHOD_ALL_GATHER};
  if (!spec.has_bias() && !pass.backward && QueriesAreLighter(spec))
    rotates.push_back(v1::ROTATE_METHOD_PASS_Q);
  return rotates;
}

Tiling TilingOf(const v1::AttentionSpec& spec) {
  return {.fuses = !ScoresByPosition(spec),
          .per_batch_row = spec.alibi_slopes() && AlignmentsOf(spec).size() > 1,
          .kernel = KernelOf(spec.dtype())};
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
  const char* unfit = nullptr;  // why it cannot be taken
};

// Looks at candidates and keeps the best: one that can be run, then the cheapest.
class Search {
 public:
  Search(const v1::AttentionSpec& spec, const v1::AttentionOptions& options, const Group& group,
         const Speed& speed, const std::vector<std::vector<Band>>& bands, uint64_t total_work,
         Pass pass)
      : spec_(spec),
        options_(options),
        group_(group),
        speed_(speed),
        bands_(bands),
        total_work_(total_work),
        pace_(PaceOf(options)),
        tiling_(TilingOf(spec)),
        pass_(pass),
        rotates_(RotatesFor(options.rotate(), spec, pass)),
        cutter_(spec, options, bands) {}

  // Every cutting and rotate method that the options allow, over `ranks` workers, but for those
  // that could gain next to nothing. FAILED_PRECONDITION: the named balancer's layout is too large,
  // or nothing that was ever tried has few enough pieces.
  absl::Status Try(int ranks) {
    const std::vector<Way> ways = cutter_.Ways(ranks);
    for (const Way way : ways) {
      if (ways.size() == 1) {
        if (const absl::Status small = cutter_.Check(way, ranks); !small.ok()) return small;
      } else if (way >= Way::kWholeDocuments && !WorthALook(way, ranks)) {
        passed_over_.insert({ranks, way});
        continue;
      }
      Look(way, ranks);
    }
    if (best_) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("spec.masks and options.balancer cut what one worker does into more pieces "
                     "(over ",
                     ranks, " workers) than are served, limit ", kMostPieces,
                     ": another balancer, larger blocks, fewer batch rows with masks of their own, "
                     "or fewer workers, make fewer"));
  }

  // The number of workers with the lowest estimate, by branch and bound: only numbers whose perfect
  // time is below the best so far are looked at. Stops early where looking costs too much. As Try.
  absl::Status TryAnyNumber() {
    const int most = std::min(group_.workers, kMaxRanks);
    std::vector<int> numbers;
    for (int ranks = 1; ranks <= most; ++ranks) numbers.push_back(ranks);
    std::stable_sort(numbers.begin(), numbers.end(),
                     [&](int a, int b) { return PerfectSeconds(a) < PerfectSeconds(b); });
    absl::Status refused;  // why there was nothing with the last number
    for (int ranks : numbers) {
      if (best_ && Fits(*best_) && PerfectSeconds(ranks) >= best_->cost.judged_seconds)
        return absl::OkStatus();
      if (effort_ > kMostPiecePairs) break;
      if (absl::Status status = Try(ranks); !status.ok()) refused = std::move(status);
    }
    if (best_ && Fits(*best_)) return absl::OkStatus();
    if (absl::Status status = Try(most); !status.ok()) refused = std::move(status);
    return best_ ? absl::OkStatus() : refused;
  }

  bool Fits(const Candidate& candidate) const {
    return group_.memory_bytes == 0 || candidate.largest_peak() <= group_.memory_bytes;
  }
  const Candidate& best() const { return *best_; }

  std::string Reason() const {
    return absl::StrCat(WorkersReason(), "; ", CuttingReason(), "; ", RotateReason());
  }

 private:
  // No cutting beats perfect balance without exchanges.
  double PerfectSeconds(int ranks) const {
    return static_cast<double>(total_work_) * speed_.seconds_per_pair / ranks +
           (ranks - 1) * speed_.rank_overhead_seconds;
  }

  bool WorthALook(Way way, int ranks) const {
    if (cutter_.SizeOf(way, ranks) > kMostAutoLayout) return false;
    return !best_ || !Fits(*best_) ||
           best_->cost.seconds >
               (1 + kWorthALook) *
                   (best_->ranks() == ranks ? best_->cost.balanced_seconds : PerfectSeconds(ranks));
  }

  // Cuts once for each side that may travel.
  void Look(Way way, int ranks) {
    std::optional<Cutting> cutting;
    Workload workload;
    ComputeSeconds compute;
    for (const v1::RotateMethod rotate : rotates_) {
      const bool pass_q = rotate == v1::ROTATE_METHOD_PASS_Q;
      if (!cutting || pass_q) {
        cutting = cutter_.Cut(way, ranks, pass_q ? Weighted::kKeys : Weighted::kQueries);
        workload = (pass_q ? MakePassQWorkload : MakeWorkload)(
            cutting->q, cutting->kv, bands_, spec_.batch(), pace_, tiling_, kMostPieces);
        effort_ += workload.piece_pairs + LayoutSize(cutting->q) + LayoutSize(cutting->kv);
        if (workload.pieces <= kMostPieces) compute = Time(*cutting, workload, pass_q);
      }
      Look(*cutting, workload, compute, rotate);
    }
  }

  // How long the ranks compute. A ring's steps tell it for all-gather, too.
  ComputeSeconds Time(const Cutting& cutting, const Workload& workload, bool pass_q) const {
    int64_t looked_through = LayoutSize(cutting.q) + LayoutSize(cutting.kv);
    for (const std::vector<Band>& row : bands_) looked_through += static_cast<int64_t>(row.size());
    if (workload.pieces * workload.ranks > kMostPiecesTimed ||
        looked_through * workload.ranks > kMostLookedThrough) {
      return ComputeOf(workload, speed_);
    }
    Plan steps;
    steps.spec = spec_;
    steps.options.set_rotate(pass_q ? v1::ROTATE_METHOD_PASS_Q : v1::ROTATE_METHOD_ALL_TO_ALL);
    steps.q = cutting.q;
    steps.kv = cutting.kv;
    steps.bands = bands_;
    if (spec_.alibi_slopes()) steps.alignments = AlignmentsOf(spec_);
    steps.reach = workload.reach;
    return ComputeOfTiles(steps, pace_, speed_);
  }

  void Look(const Cutting& cutting, const Workload& workload, const ComputeSeconds& compute,
            v1::RotateMethod rotate) {
    if (workload.pieces > kMostPieces) {
      tried_.push_back({cutting.q.ranks(), cutting.name, rotate, 0, "too many pieces"});
      return;
    }
    ParcelBytes bytes = {KvShardBytes(spec_, cutting.kv), QShardBytes(spec_, cutting.q),
                         PartialBytes(spec_, cutting.q)};
    if (pass_.backward) {
      bytes.gradients = GradientBytes(spec_, cutting.kv);
      bytes.sink_gradients = SinkGradientBytes(spec_);
    }
    Consider({cutting, rotate, Estimate(workload, compute, bytes, rotate, speed_), workload.work,
              workload.reach,
              pass_.backward
                  ? BackwardPeakBytes(spec_, cutting.q, cutting.kv, workload, rotate, pass_)
                  : PeakBytes(spec_, cutting.q, cutting.kv, bands_, workload, rotate)});
  }

  void Consider(Candidate candidate) {
    tried_.push_back({candidate.ranks(), candidate.cutting.name, candidate.rotate,
                      candidate.cost.seconds, Fits(candidate) ? nullptr : "too much memory"});
    if (!best_ || Better(candidate, *best_)) best_ = std::move(candidate);
  }

  bool Better(const Candidate& a, const Candidate& b) const {
    if (Fits(a) != Fits(b)) return Fits(a);
    return Fits(a) ? Cheaper(a.cost, b.cost) : a.largest_peak() < b.largest_peak();
  }

  static std::string SecondsOf(const Tried& tried) {
    return tried.unfit ? tried.unfit : absl::StrFormat("%.3g s", tried.seconds);
  }

  std::string WorkersReason() const {
    if (options_.workers() > 0) return absl::StrCat("workers ", best_->ranks(), " as asked");
    const Tried* runner_up = nullptr;
    for (const Tried& tried : tried_) {
      if (tried.ranks == best_->ranks()) continue;
      if (!runner_up || std::make_tuple(!!tried.unfit, tried.seconds) <
                            std::make_tuple(!!runner_up->unfit, runner_up->seconds)) {
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
    for (const Way way : {Way::kPerDocument, Way::kPtrr}) {
      if (!passed_over_.count({best_->ranks(), way})) continue;
      others.push_back(absl::StrCat(way == Way::kPtrr ? "ptrr" : "per-document",
                                    cutter_.SizeOf(way, best_->ranks()) > kMostAutoLayout
                                        ? " not tried: too many pieces"
                                        : " not tried: could gain less than 1 %"));
    }
    if (!others.empty()) absl::StrAppend(&reason, " (", absl::StrJoin(others, ", "), ")");
    return reason;
  }

  std::string RotateReason() const {
    const std::string chosen = RotateName(best_->rotate);
    if (RotateOrBalancerIsGiven(options_.rotate()))
      return absl::StrCat("rotate ", chosen, " as asked");
    std::vector<std::string> others;
    for (const Tried& tried : tried_) {
      if (tried.ranks != best_->ranks() || tried.cutting != best_->cutting.name) continue;
      if (tried.rotate == best_->rotate) continue;
      others.push_back(absl::StrCat(RotateName(tried.rotate), " ", SecondsOf(tried)));
    }
    if (others.empty()) return absl::StrCat("rotate ", chosen);
    return absl::StrCat("rotate ", chosen, " (", absl::StrJoin(others, ", "), ")");
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
  const uint64_t total_work_;
  const std::vector<double> pace_;
  const Tiling tiling_;
  const Pass pass_;
  const std::vector<v1::RotateMethod> rotates_;
  Cutter cutter_;
  std::optional<Candidate> best_;
  std::vector<Tried> tried_;
  std::set<std::pair<int, Way>> passed_over_;  // ranks, way
  int64_t effort_ = 0;
};

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
            const v1::AttentionOptions& options, Pass pass, std::vector<std::vector<Band>> bands) {
  const Candidate& best = search.best();
  Plan plan;
  plan.spec = spec;
  plan.pass = pass;
  plan.options = options;
  plan.options.set_balancer(best.cutting.balancer);
  plan.options.set_rotate(best.rotate);
  plan.options.set_workers(best.ranks());
  plan.options.set_ptrr_block(best.cutting.ptrr_block);
  plan.q = best.cutting.q;
  plan.kv = best.cutting.kv;
  plan.bands = std::move(bands);
  if (spec.alibi_slopes()) plan.alignments = AlignmentsOf(spec);
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
                              const Group& group, const v1::Measurements& measurements, Pass pass) {
  if (const absl::Status enough = CheckWorkers(options, group); !enough.ok()) return enough;
  v1::AttentionSpec normalized = spec;
  normalized.set_value_dim(ValueDim(spec));
  normalized.set_scale(Scale(spec));
  absl::StatusOr<std::vector<std::vector<Band>>> bands = CompileMasks(normalized);
  if (!bands.ok()) return bands.status();
  const absl::StatusOr<uint64_t> total = VisiblePairs(*bands, spec.batch());
  if (!total.ok()) return total.status();

  const Speed speed = SpeedOf(measurements, normalized, pass);
  Search search(normalized, options, group, speed, *bands, *total, pass);
  const absl::Status found =
      options.workers() > 0 ? search.Try(options.workers()) : search.TryAnyNumber();
  if (!found.ok()) return found;
  if (!search.Fits(search.best())) {
    return absl::FailedPreconditionError(
        absl::StrCat("spec needs ", search.best().largest_peak(), " bytes on a worker, limit ",
                     group.memory_bytes, " (cut over ", search.best().ranks(), " of ",
                     group.workers, " workers)"));
  }
  return ToPlan(search, normalized, options, pass, *std::move(bands));
}

}  // namespace ringserve
