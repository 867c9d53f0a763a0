// Which keys one query sees, by the words of the Mask message (attention.proto) and nothing else:
// the verifier's own reading of it, apart from the planner's.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "ringserve/v1/attention.pb.h"

namespace ringserve {

class VisibleKeys {
 public:
  // What query `query` (global) sees under `mask`, which outlives this. The mask is one that the
  // server accepted for a request of these lengths.
  VisibleKeys(const v1::Mask& mask, int64_t q_len, int64_t kv_len, int64_t query);

  bool Sees(int64_t key) const;

  // |p - j| as the mask counts both, for a key of the query's document.
  int64_t Distance(int64_t key) const;

  // sees[j - begin] = Sees(j) for the keys [begin, end), which exist. Returns how many are seen.
  int64_t Fill(int64_t begin, int64_t end, uint8_t* sees) const;

 private:
  bool InDocument(int64_t key) const;
  bool InBlocks(int64_t key) const;
  bool InSlices(int64_t key) const;

  const v1::Mask& mask_;
  const int64_t query_;
  // The query's document; the whole sequence where there are none; empty where it is in none.
  int64_t kv_begin_ = 0, kv_end_ = 0;
  int64_t position_ = 0;                           // p, inside the document
  const char* block_row_ = nullptr;                // bits of this query's row of blocks
  std::vector<std::pair<int64_t, int64_t>> keys_;  // [begin, end) of each slice that has the query
};

}  // namespace ringserve
