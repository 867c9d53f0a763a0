// Constants that every process must agree on.
#pragma once

#include <cstdint>

namespace ringserve {

// Version of the internal services. A worker with another version is refused at Join.
inline constexpr int kProtocolVersion = 4;

// The most ranks that one job may have.
inline constexpr int kMaxRanks = 1024;

// What a worker can be told to reserve for jobs, at most: more than any machine has.
inline constexpr uint64_t kMaxWorkerMemoryBytes = uint64_t{1} << 50;

// Bytes of tensor data that a sender puts in one message, and the most that one message may hold.
inline constexpr uint64_t kChunkBytes = 1 << 20;
inline constexpr uint64_t kMaxMessageBytes = 4 << 20;

// The most chunks one message may hold: what a chunk costs beside its bytes is bounded, too.
inline constexpr uint64_t kMaxMessageChunks = 65536;

// Headers above kMaxHeaderBytes are refused by our own words; gRPC's limit lies above it, so that
// ours are the words that are seen.
inline constexpr uint64_t kMaxHeaderBytes = 4 << 20;
inline constexpr int kReceiveLimitBytes = 8 << 20;

// Trailing metadata on an error that is worth another attempt: after how many milliseconds.
inline constexpr char kRetryAfterKey[] = "ringserve-retry-after-ms";

// Trailing metadata of every Shard.Run that the worker itself has ended: nothing of the call is
// left there. A status without it is the transport's, and says nothing about the worker.
inline constexpr char kReleasedKey[] = "ringserve-released";

// Metadata of Ring.Pass.
inline constexpr char kRingEpochKey[] = "ringserve-epoch";
inline constexpr char kRingFromKey[] = "ringserve-from";
inline constexpr char kRingToKey[] = "ringserve-to";

}  // namespace ringserve
