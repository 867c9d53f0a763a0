#include <cstdlib>
#include <memory>

#include "tests/support/oracle.h"

namespace ringserve::test {
namespace {

// Where a query or key is: which document, where in it, how long it is. Without documents
// everything is one.
struct Place {
  int64_t document = -1;  // -1: in none
  int64_t index = 0;
  int64_t length = 0;
};

std::vector<Place> PlacesOf(const google::protobuf::RepeatedField<int64_t>& lengths, int64_t rows) {
  std::vector<Place> places;
  for (int64_t document = 0; document < lengths.size(); ++document) {
    const int64_t length = lengths[static_cast<int>(document)];
    for (int64_t i = 0; i < length; ++i) places.push_back({document, i, length});
  }
  places.resize(rows);
  return places;
}

// One batch row's mask, condition by condition.
class Reading {
 public:
  Reading(const v1::Mask& mask, const v1::AttentionSpec& spec)
      : mask_(mask), q_len_(spec.q_len()), kv_len_(spec.kv_len()) {
    google::protobuf::RepeatedField<int64_t> q, kv;
    if (mask.has_documents()) {
      q = mask.documents().q_lengths();
      kv = mask.documents().kv_lengths_size() > 0 ? mask.documents().kv_lengths() : q;
    } else {
      q.Add(q_len_);
      kv.Add(kv_len_);
    }
    q_ = PlacesOf(q, q_len_);
    kv_ = PlacesOf(kv, kv_len_);
  }

  bool Sees(int64_t q, int64_t k) const {
    const Place& query = q_.at(q);
    const Place& key = kv_.at(k);
    if (query.document == -1 || key.document == -1 || query.document != key.document) return false;
    const int64_t p = PositionOf(query, key.length);
    return PassesCausal(key.index, p) && PassesWindow(key.index, p) && PassesBlocks(q, k) &&
           PassesSlices(q, k);
  }

  int64_t Distance(int64_t q, int64_t k) const {
    const Place& key = kv_.at(k);
    return std::abs(PositionOf(q_.at(q), key.length) - key.index);
  }

 private:
  // p of a query among `keys` of its document.
  int64_t PositionOf(const Place& query, int64_t keys) const {
    if (mask_.alignment_case() == v1::Mask::kBottomRight && mask_.bottom_right()) {
      return keys - 1 - (query.length - 1 - query.index);  // the last sits on the last
    }
    const bool given = mask_.alignment_case() == v1::Mask::kQOffset;
    return query.index + (given ? mask_.q_offset() : 0);
  }

  bool PassesCausal(int64_t j, int64_t p) const {
    return !mask_.causal() || j <= p || j < mask_.prefix();
  }

  bool PassesWindow(int64_t j, int64_t p) const {
    if (!mask_.has_window() || j < mask_.sinks()) return true;
    const bool left = !mask_.window().has_left() || p - mask_.window().left() <= j;
    const bool right = !mask_.window().has_right() || j <= p + mask_.window().right();
    return left && right;
  }

  bool PassesBlocks(int64_t q, int64_t k) const {
    if (!mask_.has_blocks()) return true;
    const v1::BlockMask& blocks = mask_.blocks();
    int64_t columns = 0;
    while (columns * blocks.kv_block() < kv_len_) ++columns;
    const int64_t row_bytes = columns / 8 + (columns % 8 > 0);
    const int64_t row = q / blocks.q_block(), column = k / blocks.kv_block();
    const auto byte = static_cast<uint8_t>(blocks.bits().at(row * row_bytes + column / 8));
    return (byte & (1 << (column % 8))) != 0;
  }

  bool PassesSlices(int64_t q, int64_t k) const {
    if (mask_.slices().empty()) return true;
    for (const v1::Slice& slice : mask_.slices()) {
      if (q < slice.q_begin() || q >= slice.q_end()) continue;
      if (k < slice.k_begin() || k >= slice.k_end()) continue;
      if (slice.has_lo() && k - q < slice.lo()) continue;
      if (slice.has_hi() && k - q > slice.hi()) continue;
      return true;
    }
    return false;
  }

  const v1::Mask mask_;
  const int64_t q_len_, kv_len_;
  std::vector<Place> q_, kv_;
};

// By batch row; one for all.
std::shared_ptr<std::vector<Reading>> ReadingsOf(const v1::AttentionSpec& spec) {
  auto rows = std::make_shared<std::vector<Reading>>();
  for (const v1::Mask& mask : spec.masks()) rows->emplace_back(mask, spec);
  if (rows->empty()) rows->emplace_back(v1::Mask(), spec);
  return rows;
}

}  // namespace

Sees MaskOf(const v1::AttentionSpec& spec) {
  return [rows = ReadingsOf(spec)](int64_t batch_row, int64_t q, int64_t k) {
    return rows->at(rows->size() == 1 ? 0 : batch_row).Sees(q, k);
  };
}

Distance DistanceOf(const v1::AttentionSpec& spec) {
  return [rows = ReadingsOf(spec)](int64_t batch_row, int64_t q, int64_t k) {
    return rows->at(rows->size() == 1 ? 0 : batch_row).Distance(q, k);
  };
}

}  // namespace ringserve::test
