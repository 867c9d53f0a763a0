// Cuttings: how each balancer cuts a request's queries and keys over a number of ranks. Decides
// layouts only; what they cost is for others to say.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/band.h"
#include "ringserve/v1/attention.pb.h"
#include "server/plan/layout.h"

namespace ringserve {

// The ways there are. kEven and kWholeDocuments have no name in the protocol: only `auto` takes
// them. The latter is per-document but for documents so short that one of them is next to nothing
// of a rank's work: those are not cut. It costs far fewer tiles and balances nearly as well.
enum class Way { kContiguous, kEven, kHeadTail, kWholeDocuments, kPerDocument, kPtrr };

// What worker_weights cut.
enum class Weighted { kQueries, kKeys };

struct Cutting {
  v1::Balancer balancer = v1::BALANCER_UNSPECIFIED;
  std::string name;  // for people
  SequenceLayout q;
  SequenceLayout kv;
  int64_t ptrr_block = 0;  // of kPtrr
};

// Of one request. Queries and keys of the same length are cut alike; otherwise keys are cut by
// their own length: contiguous, head-tail and per-document as queries are, PTRR head-tail (what a
// key costs is not its rank's work). Weights cut what a rank works on and stays where it is: the
// queries, or with pass-Q the keys. What travels stays even, because a step of the ring waits for
// its largest shard.
class Cutter {
 public:
  // All are valid, outlive this object and belong together; `options.worker_weights` are none or
  // as many as the ranks that are asked for.
  Cutter(const v1::AttentionSpec& spec, const v1::AttentionOptions& options,
         const std::vector<std::vector<Band>>& bands);

  // What the options allow, those that are quick to look at first. A named balancer is one way.
  std::vector<Way> Ways(int ranks) const;

  // About how large the layout will be (see LayoutSize); of PTRR, no less than the pieces into
  // which its blocks cut the bands, which is what it takes to make.
  int64_t SizeOf(Way way, int ranks) const;

  // FAILED_PRECONDITION: that is more than 2^22; names the field and says both numbers.
  absl::Status Check(Way way, int ranks) const;

  // `way` passed Check.
  Cutting Cut(Way way, int ranks, Weighted weighted = Weighted::kQueries);

 private:
  int64_t PtrrBlock(int ranks) const;
  bool KeysAreAsQueries() const;  // of the same length, in documents of the same lengths
  // The least power of two with which the pieces of documents shorter than 2W make no more than
  // kMostPiecePairs pairs of pieces.
  int64_t PerDocumentUnit(int ranks) const;
  // What is short to `way`, in the documents of one batch row.
  ShortDocuments ShortOf(Way way, const v1::Mask& mask, int ranks) const;
  SequenceLayout PerDocument(Way way, int64_t length, bool keys, int ranks,
                             const Weights& weights) const;
  SequenceLayout Ptrr(int64_t block, int ranks, const Weights& weights);

  const v1::AttentionSpec& spec_;
  const v1::AttentionOptions& options_;
  const std::vector<std::vector<Band>>& bands_;
  Weights weights_;  // empty where they are all the same
  const Weights even_;
  std::map<int64_t, std::vector<std::vector<uint64_t>>> block_work_;  // by block size, batch row
  mutable std::map<int64_t, int64_t> strips_;                         // by block size
};

// By rank: mean weight / own weight, which is how much longer than on an average worker the same
// work takes. Empty: all the same.
std::vector<double> PaceOf(const v1::AttentionOptions& options);

}  // namespace ringserve
