#include "worker/piece_pool.h"

namespace ringserve {

PiecePool::~PiecePool() {
  for (std::byte* piece : free_) copies_->GivePinned(piece);
}

absl::StatusOr<std::shared_ptr<std::byte>> PiecePool::Take() {
  const absl::StatusOr<std::byte*> piece = TakeRaw();
  if (!piece.ok()) return piece.status();
  if (*piece == nullptr) return nullptr;
  return std::shared_ptr<std::byte>(
      *piece, [pool = shared_from_this()](std::byte* returned) { pool->Give(returned); });
}

absl::StatusOr<std::byte*> PiecePool::TakeRaw() {
  absl::MutexLock lock(&mu_);
  if (!free_.empty()) {
    std::byte* const piece = free_.back();
    free_.pop_back();
    return piece;
  }
  if (made_ == most_) return nullptr;
  absl::StatusOr<std::byte*> piece = copies_->TakePinned(piece_bytes_);
  if (piece.ok()) {
    ++made_;
  } else if (absl::IsResourceExhausted(piece.status()) && made_ > 0) {
    return nullptr;
  }
  return piece;
}

void PiecePool::Give(std::byte* piece) {
  absl::MutexLock lock(&mu_);
  free_.push_back(piece);
}

}  // namespace ringserve
