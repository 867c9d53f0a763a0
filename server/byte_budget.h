// How many bytes may be held between one side and the other: per request and in the whole process.
//
// Beyond the process's limit a request may still hold one message, so that clients that are slow to
// take theirs never starve another; every request's own progress is then what lets it read again,
// and nobody has to be woken.
#pragma once

#include <atomic>
#include <cstdint>

namespace ringserve {

// Thread safe; outlives its accounts.
class ByteBudget {
 public:
  explicit ByteBudget(uint64_t limit) : limit_(limit) {}

  uint64_t held() const { return held_; }

  // One request's share. Not thread safe. Whatever it holds at its end is given back.
  class Account {
   public:
    Account(ByteBudget& budget, uint64_t limit) : budget_(budget), limit_(limit) {}
    ~Account() { Release(held_); }
    Account(const Account&) = delete;
    Account& operator=(const Account&) = delete;

    uint64_t held() const { return held_; }

    // Whether a message of `bytes` may be read while `expected` bytes of others are on their way:
    // with them, request and process stay within their limits; or the request holds and expects
    // nothing.
    bool MayRead(uint64_t bytes, uint64_t expected = 0) const;

    void Hold(uint64_t bytes);
    void Release(uint64_t bytes);  // at most held()

   private:
    ByteBudget& budget_;
    const uint64_t limit_;
    uint64_t held_ = 0;
  };

 private:
  const uint64_t limit_;
  std::atomic<uint64_t> held_{0};
};

}  // namespace ringserve
