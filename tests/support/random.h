// Numbers for tests: the same seed gives the same numbers on every machine.
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numbers>

namespace ringserve::test {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // SplitMix64 (Steele, Lea & Flood, 2014).
  uint64_t Bits() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }

  // Of [least, most], both included.
  int64_t Between(int64_t least, int64_t most) {
    assert(least <= most);
    const uint64_t span = static_cast<uint64_t>(most) - static_cast<uint64_t>(least) + 1;
    return static_cast<int64_t>(static_cast<uint64_t>(least) +
                                (span == 0 ? Bits() : Bits() % span));
  }

  // Like Between, but small numbers are as likely as large ones: even in the logarithm.
  int64_t BetweenByMagnitude(int64_t least, int64_t most) {
    const double ratio = std::log(static_cast<double>(most + 1) / static_cast<double>(least));
    const double value = static_cast<double>(least) * std::exp(ratio * Fraction());
    return std::min(most, static_cast<int64_t>(value));
  }

  double Fraction() { return static_cast<double>(Bits() >> 11) * 0x1p-53; }  // of [0, 1)
  bool Chance(double probability) { return Fraction() < probability; }

  double Normal() {
    const double radius = std::sqrt(-2 * std::log(1 - Fraction()));
    return radius * std::cos(2 * std::numbers::pi * Fraction());
  }

  template <typename T>
  T Pick(std::initializer_list<T> of) {
    return of.begin()[Between(0, static_cast<int64_t>(of.size()) - 1)];
  }

 private:
  uint64_t state_;
};

}  // namespace ringserve::test
