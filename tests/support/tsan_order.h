// What Debian's uninstrumented Abseil and gRPC order, told to ThreadSanitizer: without it, whatever
// absl::Mutex guards and whatever passes through a completion queue looks like a race.
//
// The definitions in tsan_order_*.cc are linked into every program of the tsan preset. They take
// precedence over the libraries' own, also for calls that the libraries make (gRPC locks with
// absl::Mutex, too). Each does what the library does, by calling it, and tells ThreadSanitizer who
// comes after whom.
#pragma once

#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>

namespace ringserve::tsan_order {

// The library's own function of this (mangled) name.
template <typename Function>
Function* Next(const char* name) {
  void* const next = dlsym(RTLD_NEXT, name);
  if (next == nullptr) {
    std::fprintf(stderr, "tsan_order: no library defines %s\n", name);
    std::abort();
  }
  return reinterpret_cast<Function*>(next);
}

// What ran before ComesBefore(place) in any thread happened before what runs after a later
// ComesAfter(place). An atomic at `place` that instrumented code uses orders with both.
inline void ComesBefore(const void* place) { __tsan_release(const_cast<void*>(place)); }
inline void ComesAfter(const void* place) { __tsan_acquire(const_cast<void*>(place)); }

}  // namespace ringserve::tsan_order
