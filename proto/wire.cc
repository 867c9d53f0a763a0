#include "proto/wire.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

constexpr uint32_t kChunksField = 2;
constexpr uint32_t kLastKnownField = 4;  // of the four messages that carry chunks

constexpr uint32_t kTensorTag = 1 << 3 | kVarint;
constexpr uint32_t kOffsetTag = 2 << 3 | kVarint;
constexpr uint32_t kDataTag = 3 << 3 | kBytes;
constexpr uint32_t kChunksTag = kChunksField << 3 | kBytes;

// A varint of more bytes than these is refused, as protobuf refuses it.
constexpr int kLongestVarint = 10;
constexpr int kLongestTag = 5;
constexpr int kLongestLength = 5;

// Slices up to this size are copied into the header slice in front of them: a reference costs more,
// both here and in the system call that sends it.
constexpr size_t kCopiedBytes = 256;

// Reads a message that lies in pieces. Every read is bounded by the message's end; after the first
// failure the cursor stays where it failed.
class Cursor {
 public:
  explicit Cursor(const std::vector<grpc::Slice>& pieces) : pieces_(pieces) {
    for (const grpc::Slice& piece : pieces) end_ += piece.size();
    EnterPiece();
  }

  uint64_t position() const { return position_; }
  uint64_t end() const { return end_; }

  bool ReadVarint(int longest, uint64_t limit, uint64_t* value) {
    uint64_t result = 0;
    for (int i = 0; i < longest; ++i) {
      if (position_ == limit) return false;
      if (next_ == piece_end_) NextPiece();
      const uint8_t byte = *next_++;
      ++position_;
      result |= static_cast<uint64_t>(byte & 0x7F) << (7 * i);
      if (byte < 0x80) {
        *value = result;
        return true;
      }
    }
    return false;
  }

  bool Skip(uint64_t size, uint64_t limit) {
    return Walk(size, limit, [](const grpc::Slice&, size_t, size_t) {});
  }

  // References to the next `size` bytes are appended to `slices`.
  bool Take(uint64_t size, uint64_t limit, std::vector<grpc::Slice>* slices) {
    return Walk(size, limit, [&](const grpc::Slice& piece, size_t begin, size_t length) {
      slices->push_back(piece.sub(begin, begin + length));
    });
  }

 private:
  void EnterPiece() {
    if (index_ == pieces_.size()) return;
    next_ = pieces_[index_].begin();
    piece_end_ = pieces_[index_].end();
  }

  // There is a byte left somewhere: pieces may be empty.
  void NextPiece() {
    while (next_ == piece_end_) {
      ++index_;
      EnterPiece();
    }
  }

  template <typename Visit>
  bool Walk(uint64_t size, uint64_t limit, const Visit& visit) {
    if (size > limit - position_) return false;
    while (size > 0) {
      if (next_ == piece_end_) NextPiece();
      const size_t length = std::min<uint64_t>(size, piece_end_ - next_);
      visit(pieces_[index_], next_ - pieces_[index_].begin(), length);
      next_ += length;
      position_ += length;
      size -= length;
    }
    return true;
  }

  const std::vector<grpc::Slice>& pieces_;
  size_t index_ = 0;
  const uint8_t* next_ = nullptr;
  const uint8_t* piece_end_ = nullptr;
  uint64_t position_ = 0;
  uint64_t end_ = 0;
};

absl::Status Malformed(const Cursor& cursor, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("chunk message of ", cursor.end(),
                                                 " bytes is malformed at byte ", cursor.position(),
                                                 ": ", what));
}

absl::Status ReadTag(Cursor& cursor, uint64_t limit, uint32_t* tag) {
  uint64_t value = 0;
  if (!cursor.ReadVarint(kLongestTag, limit, &value))
    return Malformed(cursor, "field tag is cut off or too long");
  if (value > std::numeric_limits<uint32_t>::max() || value >> 3 == 0) {
    return Malformed(cursor, absl::StrCat("field tag ", value, " is no field's"));
  }
  *tag = static_cast<uint32_t>(value);
  return absl::OkStatus();
}

absl::Status ReadLength(Cursor& cursor, uint64_t limit, uint64_t* length) {
  if (!cursor.ReadVarint(kLongestLength, limit, length))
    return Malformed(cursor, "length is cut off or too long");
  if (*length > limit - cursor.position()) {
    return Malformed(cursor, absl::StrCat("a field of ", *length, " bytes where ",
                                          limit - cursor.position(), " are left"));
  }
  return absl::OkStatus();
}

absl::Status SkipField(Cursor& cursor, uint64_t limit, uint32_t tag) {
  uint64_t value = 0;
  bool read = false;
  switch (tag & 7) {
    case kVarint:
      read = cursor.ReadVarint(kLongestVarint, limit, &value);
      break;
    case kFixed64:
      read = cursor.Skip(8, limit);
      break;
    case kFixed32:
      read = cursor.Skip(4, limit);
      break;
    case kBytes: {
      absl::Status status = ReadLength(cursor, limit, &value);
      if (!status.ok()) return status;
      read = cursor.Skip(value, limit);
      break;
    }
    default:
      return Malformed(cursor, absl::StrCat("field ", tag >> 3, " has wire type ", tag & 7));
  }
  return read ? absl::OkStatus()
              : Malformed(cursor, absl::StrCat("field ", tag >> 3, " is cut off"));
}

absl::Status ReadChunk(Cursor& cursor, uint64_t limit, DataChunk& chunk) {
  while (cursor.position() < limit) {
    uint32_t tag = 0;
    absl::Status status = ReadTag(cursor, limit, &tag);
    if (!status.ok()) return status;
    uint64_t value = 0;
    switch (tag) {
      case kTensorTag:
        if (!cursor.ReadVarint(kLongestVarint, limit, &value))
          return Malformed(cursor, "chunks.tensor is cut off");
        chunk.tensor = static_cast<v1::TensorId>(static_cast<int32_t>(value));
        break;
      case kOffsetTag:
        if (!cursor.ReadVarint(kLongestVarint, limit, &chunk.offset)) {
          return Malformed(cursor, "chunks.offset is cut off");
        }
        break;
      case kDataTag:
        status = ReadLength(cursor, limit, &chunk.size);
        if (!status.ok()) return status;
        chunk.slices.clear();  // the last one wins
        cursor.Take(chunk.size, limit, &chunk.slices);
        break;
      default:
        status = SkipField(cursor, limit, tag);
        if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

char* WriteVarint(uint64_t value, char* out) {
  for (; value >= 0x80; value >>= 7) *out++ = static_cast<char>(value | 0x80);
  *out++ = static_cast<char>(value);
  return out;
}

// Tag, length and fields of one chunk, up to where its data begins.
void AppendChunkHeader(const DataChunk& chunk, std::string& out) {
  char fields[4 * kLongestVarint];
  char* end = WriteVarint(kTensorTag, fields);
  end = WriteVarint(static_cast<uint64_t>(static_cast<int64_t>(chunk.tensor)), end);
  end = WriteVarint(kOffsetTag, end);
  end = WriteVarint(chunk.offset, end);
  end = WriteVarint(kDataTag, end);
  end = WriteVarint(chunk.size, end);
  char head[2 * kLongestVarint];
  char* head_end = WriteVarint(kChunksTag, head);
  head_end = WriteVarint(static_cast<uint64_t>(end - fields) + chunk.size, head_end);
  out.append(head, head_end);
  out.append(fields, end);
}

}  // namespace

DataChunk DataChunk::Sub(uint64_t begin, uint64_t length) const {
  assert(begin <= size && length <= size - begin);
  DataChunk part{tensor, offset + begin, length, {}};
  for (const grpc::Slice& slice : slices) {
    if (length == 0) break;
    if (begin >= slice.size()) {
      begin -= slice.size();
      continue;
    }
    const uint64_t taken = std::min<uint64_t>(length, slice.size() - begin);
    part.slices.push_back(slice.sub(begin, begin + taken));
    begin = 0;
    length -= taken;
  }
  return part;
}

void DataChunk::CopyTo(std::byte* destination) const {
  for (const grpc::Slice& slice : slices) {
    std::memcpy(destination, slice.begin(), slice.size());
    destination += slice.size();
  }
}

bool CarriesChunks(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> pieces;
  if (!message.Dump(&pieces).ok()) return false;
  Cursor cursor(pieces);
  uint32_t tag = 0;
  return ReadTag(cursor, cursor.end(), &tag).ok() && tag == kChunksTag;
}

absl::StatusOr<std::vector<DataChunk>> ParseChunks(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> pieces;
  if (!message.Dump(&pieces).ok()) return absl::InvalidArgumentError("chunk message has no bytes");
  Cursor cursor(pieces);
  std::vector<DataChunk> chunks;
  uint64_t data_bytes = 0;
  while (cursor.position() < cursor.end()) {
    uint32_t tag = 0;
    absl::Status status = ReadTag(cursor, cursor.end(), &tag);
    if (!status.ok()) return status;
    if (tag != kChunksTag) {
      const uint32_t field = tag >> 3;
      if (field <= kLastKnownField && field != kChunksField) {
        return Malformed(
            cursor,
            absl::StrCat("field ", field, " in a message with chunks, which carries nothing else"));
      }
      status = SkipField(cursor, cursor.end(), tag);
      if (!status.ok()) return status;
      continue;
    }
    uint64_t length = 0;
    status = ReadLength(cursor, cursor.end(), &length);
    if (!status.ok()) return status;
    if (chunks.size() == kMaxMessageChunks) {
      return Malformed(cursor,
                       absl::StrCat("more than ", kMaxMessageChunks, " chunks in one message"));
    }
    status = ReadChunk(cursor, cursor.position() + length, chunks.emplace_back());
    if (!status.ok()) return status;
    data_bytes += chunks.back().size;
    if (data_bytes > kMaxMessageBytes) {
      return Malformed(cursor,
                       absl::StrCat("chunks hold at least ", data_bytes, " bytes of data: at most ",
                                    kMaxMessageBytes, " in one message"));
    }
  }
  return chunks;
}

grpc::ByteBuffer EncodeChunks(std::span<const DataChunk> chunks) {
  assert(chunks.size() <= kMaxMessageChunks);
  std::vector<grpc::Slice> slices;
  std::string copied;
  uint64_t data_bytes = 0;
  const auto flush = [&] {
    if (!copied.empty()) slices.emplace_back(copied.data(), copied.size());
    copied.clear();
  };
  for (const DataChunk& chunk : chunks) {
    AppendChunkHeader(chunk, copied);
    for (const grpc::Slice& slice : chunk.slices) {
      if (slice.size() <= kCopiedBytes) {
        copied.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
      } else {
        flush();
        slices.push_back(slice);
      }
    }
    data_bytes += chunk.size;
  }
  flush();
  assert(data_bytes <= kMaxMessageBytes);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

DataChunk BorrowedChunk(v1::TensorId tensor, uint64_t offset, const std::byte* data, uint64_t size,
                        void (*release)(void* owner), void* owner) {
  assert(size > 0);
  DataChunk chunk{tensor, offset, size, {}};
  // gRPC's slices are not const, but it never writes into one that it sends.
  chunk.slices.emplace_back(const_cast<std::byte*>(data), size, release, owner);
  return chunk;
}

}  // namespace ringserve
