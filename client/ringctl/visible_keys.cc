#include "client/ringctl/visible_keys.h"

#include <algorithm>

namespace ringserve {

VisibleKeys::VisibleKeys(const v1::Mask& mask, int64_t q_len, int64_t kv_len, int64_t query)
    : mask_(mask), query_(query), kv_end_(kv_len) {
  int64_t q_begin = 0, q_end = q_len;
  if (mask.has_documents()) {
    const v1::Documents& documents = mask.documents();
    const auto& kv_lengths =
        documents.kv_lengths().empty() ? documents.q_lengths() : documents.kv_lengths();
    int64_t q_next = 0, kv_next = 0;
    q_begin = q_end = kv_begin_ = kv_end_ = 0;
    for (int i = 0; i < documents.q_lengths_size() && q_next <= query; ++i) {
      const int64_t q_length = documents.q_lengths(i), kv_length = kv_lengths[i];
      if (query < q_next + q_length) {
        q_begin = q_next, q_end = q_next + q_length;
        kv_begin_ = kv_next, kv_end_ = kv_next + kv_length;
      }
      q_next += q_length, kv_next += kv_length;
    }
  }
  const int64_t offset =
      mask.bottom_right() ? (kv_end_ - kv_begin_) - (q_end - q_begin) : mask.q_offset();
  position_ = offset + (query - q_begin);

  if (mask.has_blocks()) {
    const v1::BlockMask& blocks = mask.blocks();
    const int64_t columns = (kv_len + blocks.kv_block() - 1) / blocks.kv_block();
    block_row_ = blocks.bits().data() + query / blocks.q_block() * ((columns + 7) / 8);
  }
  for (const v1::Slice& slice : mask.slices()) {
    if (query < slice.q_begin() || query >= slice.q_end()) continue;
    const int64_t begin =
        slice.has_lo() ? std::max(slice.k_begin(), query + slice.lo()) : slice.k_begin();
    const int64_t end =
        slice.has_hi() ? std::min(slice.k_end(), query + slice.hi() + 1) : slice.k_end();
    if (begin < end) keys_.emplace_back(begin, end);
  }
}

bool VisibleKeys::InDocument(int64_t key) const {
  if (key < kv_begin_ || key >= kv_end_) return false;
  const int64_t j = key - kv_begin_, p = position_;
  if (mask_.causal() && j > p && j >= mask_.prefix()) return false;
  if (mask_.has_window() && j >= mask_.sinks()) {
    if (mask_.window().has_left() && j < p - mask_.window().left()) return false;
    if (mask_.window().has_right() && j > p + mask_.window().right()) return false;
  }
  return true;
}

bool VisibleKeys::InBlocks(int64_t key) const {
  if (block_row_ == nullptr) return true;
  const int64_t column = key / mask_.blocks().kv_block();
  return (block_row_[column / 8] >> (column % 8) & 1) != 0;
}

bool VisibleKeys::InSlices(int64_t key) const {
  if (mask_.slices().empty()) return true;
  return std::any_of(keys_.begin(), keys_.end(),
                     [key](const auto& run) { return run.first <= key && key < run.second; });
}

bool VisibleKeys::Sees(int64_t key) const {
  return InDocument(key) && InBlocks(key) && InSlices(key);
}

int64_t VisibleKeys::Distance(int64_t key) const {
  const int64_t p_minus_j = position_ - (key - kv_begin_);
  return p_minus_j < 0 ? -p_minus_j : p_minus_j;
}

int64_t VisibleKeys::Fill(int64_t begin, int64_t end, uint8_t* sees) const {
  int64_t count = 0;
  for (int64_t key = begin; key < end; ++key) {
    sees[key - begin] = Sees(key) ? 1 : 0;
    count += sees[key - begin];
  }
  return count;
}

}  // namespace ringserve
