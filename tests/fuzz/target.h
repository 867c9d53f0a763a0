// What the fuzz targets share: the function that libFuzzer calls, and messages cut into slices.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

// Defined by each target. Aborts where a promise is broken; else 0.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace ringserve::fuzz {

// Ends the program, in every build, where a promise does not hold.
#define FUZZ_EXPECT(promise) \
  ((promise) ? static_cast<void>(0) : ringserve::fuzz::Broken(#promise, __FILE__, __LINE__))

[[noreturn]] inline void Broken(const char* promise, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: broken: %s\n", file, line, promise);
  std::abort();
}

// Protobuf says on stderr why it refuses a message: here that is the rule, not news.
inline const bool kQuiet = (google::protobuf::SetLogHandler(nullptr), true);

// `bytes` as a message in slices whose sizes follow from `seed`: 0 leaves them in one piece.
inline grpc::ByteBuffer Sliced(const std::string& bytes, uint8_t seed) {
  std::vector<grpc::Slice> slices;
  uint32_t state = seed;
  for (size_t at = 0; at < bytes.size();) {
    state = state * 1664525 + 1013904223;
    const size_t size =
        seed == 0 ? bytes.size() : std::min<size_t>((state >> 24) % 23, bytes.size() - at);
    slices.emplace_back(bytes.data() + at, size);
    at += size;
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

inline std::string BytesOf(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!message.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices)
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

}  // namespace ringserve::fuzz
