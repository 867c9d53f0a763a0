// Locks, conditions and notifications of Abseil. A writer's lock is told at the mutex's address, a
// reader's one byte on: readers are not ordered among themselves.
#include "absl/base/options.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "tests/support/tsan_order.h"

using ringserve::tsan_order::ComesAfter;
using ringserve::tsan_order::ComesBefore;
using ringserve::tsan_order::Next;

namespace {

const void* ReadersOf(absl::Mutex* mutex) { return reinterpret_cast<const char*>(mutex) + 1; }

void Locked(absl::Mutex* mutex) {
  ComesAfter(mutex);
  ComesAfter(ReadersOf(mutex));
}
void ReaderLocked(absl::Mutex* mutex) { ComesAfter(mutex); }
void Unlocking(absl::Mutex* mutex) { ComesBefore(mutex); }
void ReaderUnlocking(absl::Mutex* mutex) { ComesBefore(ReadersOf(mutex)); }

// The condition of one who waits. Whoever holds the mutex evaluates it.
class OrderedCondition {
 public:
  OrderedCondition(absl::Mutex* mutex, const absl::Condition& condition)
      : mutex_(mutex), condition_(condition), ordered_(&Eval, this) {
    ComesBefore(this);
  }

  const absl::Condition& operator*() const { return ordered_; }

 private:
  static bool Eval(OrderedCondition* condition) {
    ComesAfter(condition);
    Locked(condition->mutex_);
    const bool holds = condition->condition_.Eval();
    Unlocking(condition->mutex_);
    return holds;
  }

  absl::Mutex* const mutex_;
  const absl::Condition& condition_;
  const absl::Condition ordered_;
};

}  // namespace

// Mangled names of members of absl::CLASS, with the namespace that this build of Abseil is in.
#define ORDER_STRING_OF(text) #text
#define ORDER_STRING(text) ORDER_STRING_OF(text)
#if ABSL_OPTION_USE_INLINE_NAMESPACE != 1
#error "mangled names below expect Abseil's inline namespace"
#endif
static_assert(sizeof(ORDER_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME)) == sizeof("debian3"));
#define ORDER_ABSL "4absl7" ORDER_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME)
#define ORDER_MUTEX "_ZN" ORDER_ABSL "5Mutex"
#define ORDER_CONDVAR "_ZN" ORDER_ABSL "7CondVar"
#define ORDER_NOTIFICATION "_ZN" ORDER_ABSL "12Notification"
#define ORDER_CONST_NOTIFICATION "_ZNK" ORDER_ABSL "12Notification"

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static auto* const next = Next<void(Mutex*)>(ORDER_MUTEX "4LockEv");
  next(this);
  Locked(this);
}

void Mutex::Unlock() {
  static auto* const next = Next<void(Mutex*)>(ORDER_MUTEX "6UnlockEv");
  Unlocking(this);
  next(this);
}

bool Mutex::TryLock() {
  static auto* const next = Next<bool(Mutex*)>(ORDER_MUTEX "7TryLockEv");
  const bool locked = next(this);
  if (locked) Locked(this);
  return locked;
}

void Mutex::ReaderLock() {
  static auto* const next = Next<void(Mutex*)>(ORDER_MUTEX "10ReaderLockEv");
  next(this);
  ReaderLocked(this);
}

void Mutex::ReaderUnlock() {
  static auto* const next = Next<void(Mutex*)>(ORDER_MUTEX "12ReaderUnlockEv");
  ReaderUnlocking(this);
  next(this);
}

bool Mutex::ReaderTryLock() {
  static auto* const next = Next<bool(Mutex*)>(ORDER_MUTEX "13ReaderTryLockEv");
  const bool locked = next(this);
  if (locked) ReaderLocked(this);
  return locked;
}

void Mutex::LockWhen(const Condition& condition) {
  static auto* const next =
      Next<void(Mutex*, const Condition&)>(ORDER_MUTEX "8LockWhenERKNS0_9ConditionE");
  const OrderedCondition ordered(this, condition);
  next(this, *ordered);
  Locked(this);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, absl::Duration timeout) {
  static auto* const next = Next<bool(Mutex*, const Condition&, absl::Duration)>(
      ORDER_MUTEX "19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  const OrderedCondition ordered(this, condition);
  const bool holds = next(this, *ordered, timeout);
  Locked(this);
  return holds;
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, absl::Time deadline) {
  static auto* const next = Next<bool(Mutex*, const Condition&, absl::Time)>(
      ORDER_MUTEX "20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  const OrderedCondition ordered(this, condition);
  const bool holds = next(this, *ordered, deadline);
  Locked(this);
  return holds;
}

void Mutex::ReaderLockWhen(const Condition& condition) {
  static auto* const next =
      Next<void(Mutex*, const Condition&)>(ORDER_MUTEX "14ReaderLockWhenERKNS0_9ConditionE");
  const OrderedCondition ordered(this, condition);
  next(this, *ordered);
  ReaderLocked(this);
}

bool Mutex::ReaderLockWhenWithTimeout(const Condition& condition, absl::Duration timeout) {
  static auto* const next = Next<bool(Mutex*, const Condition&, absl::Duration)>(
      ORDER_MUTEX "25ReaderLockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  const OrderedCondition ordered(this, condition);
  const bool holds = next(this, *ordered, timeout);
  ReaderLocked(this);
  return holds;
}

bool Mutex::ReaderLockWhenWithDeadline(const Condition& condition, absl::Time deadline) {
  static auto* const next = Next<bool(Mutex*, const Condition&, absl::Time)>(
      ORDER_MUTEX "26ReaderLockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  const OrderedCondition ordered(this, condition);
  const bool holds = next(this, *ordered, deadline);
  ReaderLocked(this);
  return holds;
}

// Await does not say whether the caller reads or writes: both are told.
void Mutex::Await(const Condition& condition) {
  static auto* const next =
      Next<void(Mutex*, const Condition&)>(ORDER_MUTEX "5AwaitERKNS0_9ConditionE");
  const OrderedCondition ordered(this, condition);
  Unlocking(this);
  next(this, *ordered);
  Locked(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, absl::Duration timeout) {
  static auto* const next = Next<bool(Mutex*, const Condition&, absl::Duration)>(
      ORDER_MUTEX "16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  const OrderedCondition ordered(this, condition);
  Unlocking(this);
  const bool holds = next(this, *ordered, timeout);
  Locked(this);
  return holds;
}

bool Mutex::AwaitWithDeadline(const Condition& condition, absl::Time deadline) {
  static auto* const next = Next<bool(Mutex*, const Condition&, absl::Time)>(
      ORDER_MUTEX "17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  const OrderedCondition ordered(this, condition);
  Unlocking(this);
  const bool holds = next(this, *ordered, deadline);
  Locked(this);
  return holds;
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const next = Next<void(CondVar*, Mutex*)>(ORDER_CONDVAR "4WaitEPNS0_5MutexE");
  Unlocking(mutex);
  next(this, mutex);
  Locked(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, absl::Duration timeout) {
  static auto* const next = Next<bool(CondVar*, Mutex*, absl::Duration)>(
      ORDER_CONDVAR "15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  Unlocking(mutex);
  const bool timed_out = next(this, mutex, timeout);
  Locked(mutex);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, absl::Time deadline) {
  static auto* const next = Next<bool(CondVar*, Mutex*, absl::Time)>(
      ORDER_CONDVAR "16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  Unlocking(mutex);
  const bool timed_out = next(this, mutex, deadline);
  Locked(mutex);
  return timed_out;
}

// HasBeenNotified() is inline: it reads the flag, which is what the order is told at.
void Notification::Notify() {
  static auto* const next = Next<void(Notification*)>(ORDER_NOTIFICATION "6NotifyEv");
  ComesBefore(&notified_yet_);
  next(this);
}

void Notification::WaitForNotification() const {
  static auto* const next =
      Next<void(const Notification*)>(ORDER_CONST_NOTIFICATION "19WaitForNotificationEv");
  next(this);
  ComesAfter(&notified_yet_);
}

bool Notification::WaitForNotificationWithTimeout(absl::Duration timeout) const {
  static auto* const next = Next<bool(const Notification*, absl::Duration)>(
      ORDER_CONST_NOTIFICATION "30WaitForNotificationWithTimeoutENS0_8DurationE");
  const bool notified = next(this, timeout);
  if (notified) ComesAfter(&notified_yet_);
  return notified;
}

bool Notification::WaitForNotificationWithDeadline(absl::Time deadline) const {
  static auto* const next = Next<bool(const Notification*, absl::Time)>(
      ORDER_CONST_NOTIFICATION "31WaitForNotificationWithDeadlineENS0_4TimeE");
  const bool notified = next(this, deadline);
  if (notified) ComesAfter(&notified_yet_);
  return notified;
}

ABSL_NAMESPACE_END
}  // namespace absl
