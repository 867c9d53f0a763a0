#include "worker/staging.h"

#include <cassert>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

// Between two questions whether a copy is over, which takes 40 us for 1 MiB.
constexpr std::chrono::microseconds kPause{20};

}  // namespace

class Staging::StagedFetch : public TensorMemory::Fetch {
 public:
  StagedFetch(Staging& staging, uint64_t size, Held held)
      : staging_(staging), size_(size), held_(std::move(held)) {}

  ~StagedFetch() override {
    if (held_.piece == nullptr) return;
    if (!failed_) failed_ = !staging_.Await(DeviceCopies::kOut, held_.mark).ok();
    if (failed_) staging_.Keep(std::move(held_));
  }

  absl::StatusOr<DataChunk> Take(v1::TensorId tensor, uint64_t offset) override {
    absl::Status status = staging_.Await(DeviceCopies::kOut, held_.mark);
    failed_ = !status.ok();
    if (failed_) return status;
    held_.keep_alive.reset();
    using Piece = std::shared_ptr<std::byte>;
    const std::byte* const bytes = held_.piece.get();
    return BorrowedChunk(
        tensor, offset, bytes, size_, [](void* owner) { delete static_cast<Piece*>(owner); },
        new Piece(std::move(held_.piece)));
  }

 private:
  Staging& staging_;
  const uint64_t size_;
  Held held_;
  bool failed_ = false;
};

Staging::Staging(std::shared_ptr<DeviceCopies> copies, StagingOptions options)
    : copies_(std::move(copies)),
      options_(std::move(options)),
      in_(PiecePool::Make(copies_, kMaxMessageBytes, options_.pieces_in)),
      out_(PiecePool::Make(copies_, kChunkBytes, options_.pieces_out)) {}

Staging::~Staging() {
  bool over = Settle().ok();
  const absl::StatusOr<DeviceCopies::Mark> out = copies_->Place(DeviceCopies::kOut);
  over = over && out.ok() && Await(DeviceCopies::kOut, *out).ok();
  absl::MutexLock lock(&mu_);
  // Better never than under the device's hands: the process ends anyway.
  if (!over) new std::pair(std::move(written_), std::move(lost_));
}

absl::StatusOr<TensorBuffer> Staging::Allocate(uint64_t bytes) {
  if (bytes == 0) return TensorBuffer();
  const absl::StatusOr<std::byte*> memory = copies_->TakeDevice(bytes);
  if (absl::IsResourceExhausted(memory.status())) return memory.status();
  if (!memory.ok()) return Lost(memory.status());
  std::shared_ptr<const void> owner(
      *memory, [copies = copies_](std::byte* returned) { copies->GiveDevice(returned); });
  return TensorBuffer{*memory, bytes, std::move(owner)};
}

absl::Status Staging::Write(std::span<const PlacedChunk> chunks,
                            const std::shared_ptr<const void>& keep_alive) {
  absl::StatusOr<std::shared_ptr<std::byte>> piece = TakePiece();
  if (!piece.ok()) return piece.status();
  std::vector<Copy> copies;
  uint64_t filled = 0;
  std::optional<v1::TensorId>
      last;  // a copy stays within a tensor: the next may only seem to adjoin
  for (const PlacedChunk& placed : chunks) {
    const uint64_t size = placed.chunk->size;
    if (size == 0) continue;
    assert(filled + size <= kMaxMessageBytes);
    std::byte* const staged = piece->get() + filled;
    placed.chunk->CopyTo(staged);
    filled += size;
    if (last == placed.chunk->tensor && copies.back().to + copies.back().bytes == placed.to) {
      copies.back().bytes += size;
    } else {
      copies.push_back({placed.to, staged, size});
    }
    last = placed.chunk->tensor;
  }
  if (copies.empty()) return absl::OkStatus();
  return Send(copies, {.piece = *std::move(piece), .keep_alive = keep_alive});
}

absl::Status Staging::Settle() {
  const absl::StatusOr<DeviceCopies::Mark> mark = copies_->Place(DeviceCopies::kIn);
  if (!mark.ok()) return Lost(mark.status());
  absl::Status status = Await(DeviceCopies::kIn, *mark);
  if (!status.ok()) return status;
  status = LetGoOfWhatIsWritten();
  return status.ok() ? status : Lost(status);
}

absl::StatusOr<std::unique_ptr<TensorMemory::Fetch>> Staging::Begin(
    const std::byte* from, uint64_t size, std::shared_ptr<const void> keep_alive) {
  assert(size > 0 && size <= kChunkBytes);
  absl::StatusOr<std::shared_ptr<std::byte>> piece = out_->Take();
  if (!piece.ok() && !absl::IsResourceExhausted(piece.status())) return Lost(piece.status());
  Held held{.keep_alive = std::move(keep_alive)};
  if (piece.ok()) held.piece = *std::move(piece);
  if (held.piece == nullptr) {
    held.piece =
        std::shared_ptr<std::byte>(new std::byte[size], std::default_delete<std::byte[]>());
  }
  absl::Status status = copies_->Begin(DeviceCopies::kOut, held.piece.get(), from, size);
  absl::StatusOr<DeviceCopies::Mark> mark = copies_->Place(DeviceCopies::kOut);
  if (status.ok()) status = mark.status();
  if (!status.ok()) {
    Keep(std::move(held));
    return Lost(status);
  }
  held.mark = *mark;
  return std::make_unique<StagedFetch>(*this, size, std::move(held));
}

absl::StatusOr<std::shared_ptr<std::byte>> Staging::TakePiece() {
  absl::StatusOr<std::shared_ptr<std::byte>> piece;
  absl::Status status = AwaitUntil([&]() -> absl::StatusOr<bool> {
    absl::Status swept = LetGoOfWhatIsWritten();
    if (!swept.ok()) return swept;
    piece = in_->Take();
    if (!piece.ok() && !absl::IsResourceExhausted(piece.status())) return piece.status();
    return !piece.ok() || *piece != nullptr;
  });
  if (!status.ok()) return status;
  return piece;
}

// Under the lock: pieces must lie in the order of the copies.
absl::Status Staging::Send(const std::vector<Copy>& copies, Held held) {
  absl::Status status;
  {
    absl::MutexLock lock(&mu_);
    for (const Copy& copy : copies) {
      if (status.ok()) status = copies_->Begin(DeviceCopies::kIn, copy.to, copy.from, copy.bytes);
    }
    const absl::StatusOr<DeviceCopies::Mark> mark = copies_->Place(DeviceCopies::kIn);
    if (status.ok()) status = mark.status();
    if (status.ok()) {
      held.mark = *mark;
      written_.push_back(std::move(held));
      return status;
    }
  }
  Keep(std::move(held));
  return Lost(status);
}

absl::Status Staging::LetGoOfWhatIsWritten() {
  absl::MutexLock lock(&mu_);
  while (!written_.empty()) {
    const absl::StatusOr<bool> reached = copies_->Reached(DeviceCopies::kIn, written_.front().mark);
    if (!reached.ok()) return reached.status();
    if (!*reached) break;
    written_.pop_front();
  }
  return absl::OkStatus();
}

absl::Status Staging::Await(DeviceCopies::Way way, DeviceCopies::Mark mark) {
  return AwaitUntil([&] { return copies_->Reached(way, mark); });
}

absl::Status Staging::AwaitUntil(const std::function<absl::StatusOr<bool>()>& done) {
  const auto deadline = std::chrono::steady_clock::now() + options_.patience;
  for (;;) {
    const absl::StatusOr<bool> is = done();
    if (!is.ok()) return Lost(is.status());
    if (*is) return absl::OkStatus();
    if (std::chrono::steady_clock::now() >= deadline) {
      return Lost(absl::InternalError(
          absl::StrCat("its copies are not over after ", options_.patience.count(), " ms")));
    }
    std::this_thread::sleep_for(kPause);
  }
}

absl::Status Staging::Lost(const absl::Status& why) {
  absl::Status status = absl::InternalError(absl::StrCat("the device failed: ", why.message()));
  options_.device_lost(status);
  return status;
}

void Staging::Keep(Held held) {
  absl::MutexLock lock(&mu_);
  lost_.push_back(std::move(held));
}

}  // namespace ringserve
