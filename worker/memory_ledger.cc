#include "worker/memory_ledger.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ringserve {

MemoryLedger::Reservation::Reservation(Reservation&& other) noexcept
    : ledger_(std::move(other.ledger_)), bytes_(std::exchange(other.bytes_, 0)) {}

MemoryLedger::Reservation& MemoryLedger::Reservation::operator=(Reservation&& other) noexcept {
  std::swap(ledger_, other.ledger_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void MemoryLedger::Reservation::Release() {
  if (ledger_ == nullptr) return;
  std::exchange(ledger_, nullptr)->GiveBack(std::exchange(bytes_, 0));
}

std::shared_ptr<MemoryLedger> MemoryLedger::Make(uint64_t limit,
                                                 std::chrono::milliseconds patience) {
  return std::shared_ptr<MemoryLedger>(new MemoryLedger(limit, patience));
}

void MemoryLedger::Reserve(uint64_t bytes, Done done) {
  absl::Status status;
  if (bytes > limit_) {
    status = absl::ResourceExhaustedError(
        absl::StrCat("the job takes ", bytes, " bytes: this worker has ", limit_));
  } else {
    absl::MutexLock lock(&mu_);
    if (!waiters_.empty() || bytes > limit_ - reserved_) {
      auto waiter = std::make_shared<Waiter>();
      waiter->bytes = bytes;
      waiter->done = std::move(done);
      waiter->alarm = std::make_unique<grpc::Alarm>();
      waiters_.push_back(waiter);
      waiter->alarm->Set(std::chrono::system_clock::now() + patience_,
                         [self = shared_from_this(), waiter](bool) { self->Answer(*waiter); });
      return;
    }
    reserved_ += bytes;
  }
  Reservation reservation = status.ok() ? Reservation(shared_from_this(), bytes) : Reservation();
  done(std::move(status), std::move(reservation));
}

uint64_t MemoryLedger::reserved() const {
  absl::MutexLock lock(&mu_);
  return reserved_;
}

void MemoryLedger::GiveBack(uint64_t bytes) {
  absl::MutexLock lock(&mu_);
  reserved_ -= bytes;
  ServeLocked();
}

void MemoryLedger::ServeLocked() {
  while (!waiters_.empty() && waiters_.front()->bytes <= limit_ - reserved_) {
    reserved_ += waiters_.front()->bytes;
    waiters_.front()->served = true;
    waiters_.front()->alarm->Cancel();
    waiters_.pop_front();
  }
}

void MemoryLedger::Answer(Waiter& waiter) {
  absl::Status status;
  {
    absl::MutexLock lock(&mu_);
    if (!waiter.served) {
      status = absl::ResourceExhaustedError(absl::StrCat(
          "the job takes ", waiter.bytes, " bytes: ", reserved_, " of ", limit_, " are taken"));
      std::erase_if(waiters_, [&](const auto& other) { return other.get() == &waiter; });
      ServeLocked();  // whoever stood behind this one may fit
    }
  }
  waiter.alarm.reset();  // it holds the callback that holds the waiter
  Reservation reservation =
      status.ok() ? Reservation(shared_from_this(), waiter.bytes) : Reservation();
  std::exchange(waiter.done, nullptr)(std::move(status), std::move(reservation));
}

}  // namespace ringserve
