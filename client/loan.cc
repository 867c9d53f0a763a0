#include "client/loan.h"

#include "absl/time/time.h"

namespace ringserve {

DataChunk Loan::Lend(v1::TensorId tensor, uint64_t offset, const std::byte* data, uint64_t size) {
  {
    absl::MutexLock lock(&mutex_);
    ++out_;
  }
  // Each chunk owns the loan: the last release may run while the borrower already destroys its own.
  auto* owner = new std::shared_ptr<Loan>(shared_from_this());
  return BorrowedChunk(tensor, offset, data, size, &Loan::Release, owner);
}

void Loan::Release(void* owner) {
  const std::unique_ptr<std::shared_ptr<Loan>> loan(static_cast<std::shared_ptr<Loan>*>(owner));
  absl::MutexLock lock(&(*loan)->mutex_);
  --(*loan)->out_;
}

bool Loan::AwaitReturned(std::chrono::milliseconds timeout) {
  absl::MutexLock lock(&mutex_);
  const auto all_back = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return out_ == 0; };
  return mutex_.AwaitWithTimeout(absl::Condition(&all_back), absl::FromChrono(timeout));
}

}  // namespace ringserve
