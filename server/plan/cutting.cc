#include "server/plan/cutting.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "server/plan/ptrr.h"
#include "server/plan/workload.h"

namespace ringserve {
namespace {

constexpr int64_t kMostPiecesCut = int64_t{1} << 22;
// A document that is left whole is at most so much of a rank's work.
constexpr double kWholeDocumentsShare = 0.03;

Weights WeightsOf(const v1::AttentionOptions& options) {
  const auto& weights = options.worker_weights();
  const bool same = std::all_of(weights.begin(), weights.end(),
                                [&](double weight) { return weight == weights.Get(0); });
  return same ? Weights() : Weights(weights.begin(), weights.end());
}

// Rows that are all the same are one.
SequenceLayout Collapsed(SequenceLayout layout) {
  const bool same = std::all_of(layout.rows.begin(), layout.rows.end(),
                                [&](const RowLayout& row) { return row == layout.rows[0]; });
  if (same) layout.rows.resize(1);
  return layout;
}

std::span<const int64_t> LengthsOf(const v1::Mask& mask, bool keys) {
  const v1::Documents& documents = mask.documents();
  const auto& lengths =
      keys && !documents.kv_lengths().empty() ? documents.kv_lengths() : documents.q_lengths();
  return {lengths.data(), static_cast<size_t>(lengths.size())};
}

// What blocks of queries cut the bands into.
int64_t StripCount(const std::vector<std::vector<Band>>& bands, int64_t block) {
  int64_t strips = 0;
  for (const std::vector<Band>& row : bands) {
    for (const Band& band : row) strips += (band.q_end - 1) / block - band.q_begin / block + 1;
  }
  return strips;
}

// Pieces that per-document cuts one document into.
int64_t PieceCount(int64_t document, int ranks, int64_t unit) {
  const int64_t usual = 2 * static_cast<int64_t>(ranks);
  return document < usual ? (document + unit - 1) / unit : usual;
}

int64_t PieceCount(std::span<const int64_t> documents, int64_t length, int ranks, int64_t unit) {
  int64_t pieces = 0;
  for (const int64_t document : documents) {
    pieces += PieceCount(document, ranks, unit);
    length -= document;
  }
  return pieces + PieceCount(length, ranks, unit);
}

// Pairs of a query piece and a key piece of the same document, where a larger unit makes fewer.
int64_t ShortPiecePairs(const v1::Mask& mask, int ranks, int64_t unit) {
  const std::span<const int64_t> q = LengthsOf(mask, false), kv = LengthsOf(mask, true);
  int64_t pairs = 0;
  for (size_t i = 0; i < q.size(); ++i) {
    if (std::min(q[i], kv[i]) >= 2 * static_cast<int64_t>(ranks)) continue;
    pairs += PieceCount(q[i], ranks, unit) * PieceCount(kv[i], ranks, unit);
  }
  return pairs;
}

}  // namespace

std::vector<double> PaceOf(const v1::AttentionOptions& options) {
  const Weights weights = WeightsOf(options);
  if (weights.empty()) return {};
  std::vector<double> pace = SharesOf(weights);
  for (double& share : pace) share = 1 / (share * static_cast<double>(weights.size()));
  return pace;
}

Cutter::Cutter(const v1::AttentionSpec& spec, const v1::AttentionOptions& options,
               const std::vector<std::vector<Band>>& bands)
    : spec_(spec), options_(options), bands_(bands), weights_(WeightsOf(options)) {}

std::vector<Way> Cutter::Ways(int ranks) const {
  switch (options_.balancer()) {
    case v1::BALANCER_CONTIGUOUS:
      return {Way::kContiguous};
    case v1::BALANCER_HEAD_TAIL:
      return {Way::kHeadTail};
    case v1::BALANCER_PER_DOCUMENT:
      return {Way::kPerDocument};
    case v1::BALANCER_PTRR:
      return {Way::kPtrr};
    default:
      break;
  }
  if (ranks == 1) return {Way::kContiguous};
  std::vector<Way> ways = {Way::kContiguous};
  const auto differs = [ranks](int64_t length) {
    return EvenLayout(length, ranks) != ContiguousLayout(length, ranks);
  };
  if (weights_.empty() && (differs(spec_.q_len()) || differs(spec_.kv_len())))
    ways.push_back(Way::kEven);
  ways.push_back(Way::kHeadTail);
  const bool documents = std::any_of(spec_.masks().begin(), spec_.masks().end(),
                                     [](const v1::Mask& mask) { return mask.has_documents(); });
  // Where per-document cuts by a larger unit, documents have no use for so many ranks.
  if (documents && PerDocumentUnit(ranks) == 1)
    ways.insert(ways.end(), {Way::kWholeDocuments, Way::kPerDocument});
  ways.push_back(Way::kPtrr);
  return ways;
}

int64_t Cutter::SizeOf(Way way, int ranks) const {
  if (way == Way::kPtrr) {
    const int64_t block = PtrrBlock(ranks);
    const int64_t blocks = (spec_.q_len() + block - 1) / block;
    const auto [strips, unknown] = strips_.try_emplace(block);
    if (unknown) strips->second = StripCount(bands_, block);
    return std::max(static_cast<int64_t>(bands_.size()) * (blocks + ranks), strips->second);
  }
  if (way != Way::kPerDocument && way != Way::kWholeDocuments)
    return 3 * static_cast<int64_t>(ranks);
  const int64_t unit = PerDocumentUnit(ranks);
  int64_t q = 0, kv = 0;
  for (const v1::Mask& mask : spec_.masks()) {
    q += PieceCount(LengthsOf(mask, false), spec_.q_len(), ranks, unit) + ranks;
    kv += PieceCount(LengthsOf(mask, true), spec_.kv_len(), ranks, unit) + ranks;
  }
  return std::max({q, kv, 3 * static_cast<int64_t>(ranks)});
}

absl::Status Cutter::Check(Way way, int ranks) const {
  const int64_t size = SizeOf(way, ranks);
  if (size <= kMostPiecesCut) return absl::OkStatus();
  std::string what = "options.balancer per-document cuts spec.masks' documents";
  if (way == Way::kPtrr) {
    what = absl::StrCat("options.ptrr_block is ", PtrrBlock(ranks), ": cuts spec.q_len ",
                        spec_.q_len(), ", or what spec.masks show,");
  }
  return absl::FailedPreconditionError(absl::StrCat(what, " into ", size, " pieces over ", ranks,
                                                    " workers and all batch rows, limit ",
                                                    kMostPiecesCut));
}

int64_t Cutter::PtrrBlock(int ranks) const {
  return options_.ptrr_block() > 0 ? options_.ptrr_block() : DefaultPtrrBlock(spec_.q_len(), ranks);
}

bool Cutter::KeysAreAsQueries() const {
  return spec_.q_len() == spec_.kv_len() &&
         std::all_of(spec_.masks().begin(), spec_.masks().end(), [](const v1::Mask& mask) {
           const v1::Documents& documents = mask.documents();
           return documents.kv_lengths().empty() ||
                  std::equal(documents.q_lengths().begin(), documents.q_lengths().end(),
                             documents.kv_lengths().begin());
         });
}

int64_t Cutter::PerDocumentUnit(int ranks) const {
  for (int64_t unit = 1;; unit *= 2) {
    int64_t pairs = 0;
    for (const v1::Mask& mask : spec_.masks()) pairs += ShortPiecePairs(mask, ranks, unit);
    if (pairs <= kMostPiecePairs || unit >= 2 * static_cast<int64_t>(ranks)) return unit;
  }
}

ShortDocuments Cutter::ShortOf(Way way, const v1::Mask& mask, int ranks) const {
  if (way == Way::kPerDocument) {
    const int64_t unit = PerDocumentUnit(ranks);
    return {.below = unit > 1 ? 2 * static_cast<int64_t>(ranks) : 0, .unit = unit};
  }
  const std::span<const int64_t> q = LengthsOf(mask, false), kv = LengthsOf(mask, true);
  double work = 0;
  for (size_t i = 0; i < q.size(); ++i)
    work += static_cast<double>(q[i]) * static_cast<double>(kv[i]);
  const int64_t below = static_cast<int64_t>(std::sqrt(kWholeDocumentsShare * work / ranks)) + 1;
  return {.below = below, .unit = below, .by_work = true};
}

SequenceLayout Cutter::PerDocument(Way way, int64_t length, bool keys, int ranks,
                                   const Weights& weights) const {
  SequenceLayout layout;
  for (const v1::Mask& mask : spec_.masks()) {
    layout.rows.push_back(
        PerDocumentRow(LengthsOf(mask, keys), length, ranks, weights, ShortOf(way, mask, ranks)));
  }
  if (layout.rows.empty()) layout.rows.push_back(PerDocumentRow({}, length, ranks, weights));
  return Collapsed(std::move(layout));
}

SequenceLayout Cutter::Ptrr(int64_t block, int ranks, const Weights& weights) {
  std::vector<std::vector<uint64_t>>& work = block_work_[block];
  if (work.empty()) {
    for (const std::vector<Band>& row : bands_) {
      work.push_back(options_.ptrr_count_blocks() ? BlockCounts(row, spec_.q_len(), block)
                                                  : BlockPairs(row, spec_.q_len(), block));
    }
  }
  SequenceLayout layout;
  for (const std::vector<uint64_t>& row : work)
    layout.rows.push_back(PtrrRow(row, spec_.q_len(), block, ranks, weights));
  return Collapsed(std::move(layout));
}

Cutting Cutter::Cut(Way way, int ranks, Weighted weighted) {
  assert(weights_.empty() || weights_.size() == static_cast<size_t>(ranks));
  const int64_t q_len = spec_.q_len(), kv_len = spec_.kv_len();
  const Weights& of_q = weighted == Weighted::kQueries ? weights_ : even_;
  const Weights& of_kv = weighted == Weighted::kKeys ? weights_ : even_;
  switch (way) {
    case Way::kContiguous:
      return {v1::BALANCER_CONTIGUOUS, "contiguous", ContiguousLayout(q_len, ranks, of_q),
              ContiguousLayout(kv_len, ranks, of_kv)};
    case Way::kEven:
      return {v1::BALANCER_CONTIGUOUS, "even pieces", EvenLayout(q_len, ranks),
              EvenLayout(kv_len, ranks)};
    case Way::kHeadTail:
      return {v1::BALANCER_HEAD_TAIL, "head-tail", HeadTailLayout(q_len, ranks, of_q),
              HeadTailLayout(kv_len, ranks, of_kv)};
    case Way::kWholeDocuments:
    case Way::kPerDocument: {
      Cutting cutting{v1::BALANCER_PER_DOCUMENT,
                      way == Way::kPerDocument ? "per-document" : "per-document, short ones whole",
                      PerDocument(way, q_len, false, ranks, of_q),
                      {}};
      cutting.kv = KeysAreAsQueries() && weights_.empty()
                       ? cutting.q
                       : PerDocument(way, kv_len, true, ranks, of_kv);
      return cutting;
    }
    case Way::kPtrr:
      break;
  }
  const int64_t block = PtrrBlock(ranks);
  Cutting cutting{v1::BALANCER_PTRR,
                  absl::StrCat("ptrr (blocks of ", block, block == 1 ? " row)" : " rows)"),
                  Ptrr(block, ranks, of_q),
                  {},
                  block};
  if (q_len != kv_len) {
    cutting.kv = HeadTailLayout(kv_len, ranks, of_kv);
  } else {
    cutting.kv = weights_.empty() ? cutting.q : Ptrr(block, ranks, of_kv);
  }
  return cutting;
}

}  // namespace ringserve
