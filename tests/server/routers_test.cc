// The two routers together: what is cut from a caller's tensors and what is put together from the
// ranks' shards, over random shapes, layouts and sizes of chunks.
#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/protocol.h"
#include "proto/tensor_shape.h"
#include "proto/wire.h"
#include "server/download_router.h"
#include "server/plan/shard_map.h"
#include "server/upload_router.h"

namespace ringserve {
namespace {

using ::testing::HasSubstr;

using Bytes = std::map<v1::TensorId, std::string>;

std::string RandomBytes(std::mt19937& random, uint64_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

// A chunk whose bytes lie in slices of any size, as a transport may deliver them.
DataChunk Scattered(std::mt19937& random, v1::TensorId tensor, uint64_t offset,
                    const std::string& bytes) {
  DataChunk chunk{tensor, offset, bytes.size(), {}};
  for (size_t done = 0; done < bytes.size();) {
    const size_t size = std::min<size_t>(1 + random() % 1'500, bytes.size() - done);
    chunk.slices.emplace_back(bytes.data() + done, size);
    done += size;
  }
  return chunk;
}

grpc::ByteBuffer Message(std::vector<DataChunk> chunks) { return EncodeChunks(chunks); }

grpc::ByteBuffer OneChunk(int tensor, uint64_t offset, const std::string& bytes) {
  DataChunk chunk{static_cast<v1::TensorId>(tensor), offset, bytes.size(), {}};
  if (!bytes.empty()) chunk.slices.emplace_back(bytes);
  return Message({chunk});
}

Plan MakePlanOver(const v1::AttentionSpec& spec, v1::Balancer balancer, int ranks,
                  bool lse = true) {
  v1::AttentionOptions options;
  options.set_workers(ranks);
  options.set_balancer(balancer);
  options.set_return_lse(lse);
  return *MakePlan(spec, options, {ranks, 0}, DefaultMeasurements());
}

v1::AttentionSpec SmallSpec() {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(2);
  spec.set_kv_heads(1);
  spec.set_q_len(8);
  spec.set_kv_len(6);
  spec.set_head_dim(4);
  spec.set_dtype(v1::DTYPE_F32);
  return spec;
}

v1::AttentionSpec RandomSpec(std::mt19937& random) {
  const auto upto = [&](int most) { return 1 + static_cast<int>(random() % most); };
  v1::AttentionSpec spec;
  spec.set_batch(upto(3));
  spec.set_kv_heads(upto(3));
  spec.set_q_heads(spec.kv_heads() * upto(3));
  spec.set_q_len(upto(200));
  spec.set_kv_len(upto(200));
  spec.set_head_dim(upto(70));
  spec.set_value_dim(upto(70));
  spec.set_dtype(static_cast<v1::DType>(upto(4)));
  spec.set_tensor_layout(static_cast<v1::TensorLayout>(random() % 3));
  return spec;
}

ShardMap MapOf(const Plan& plan, v1::TensorId tensor) {
  const bool keys = tensor == v1::TENSOR_ID_K || tensor == v1::TENSOR_ID_V;
  return ShardMap(ShapeOf(tensor, plan.spec), keys ? plan.kv : plan.q);
}

std::string ShardOf(const Plan& plan, v1::TensorId tensor, const std::string& whole, int rank) {
  const ShardMap map = MapOf(plan, tensor);
  std::string shard(map.ShardBytes(rank), '\0');
  for (const ByteRun& run : map.FromShard(rank, 0, shard.size())) {
    std::memcpy(shard.data() + run.shard_offset, whole.data() + run.tensor_offset, run.size);
  }
  return shard;
}

// Takes whatever waits for `rank`, and holds it against what a worker demands.
void Collect(UploadRouter& upload, int rank, Bytes& shards) {
  while (!upload.queue(rank).empty()) {
    const OutgoingMessage message = upload.queue(rank).Pop();
    ASSERT_LE(message.data_bytes, kChunkBytes);
    const auto chunks = ParseChunks(message.buffer);
    ASSERT_TRUE(chunks.ok()) << chunks.status();
    uint64_t bytes = 0;
    for (const DataChunk& chunk : *chunks) {
      std::string& shard = shards[chunk.tensor];
      ASSERT_EQ(chunk.offset, shard.size()) << TensorName(chunk.tensor);
      shard.resize(shard.size() + chunk.size);
      chunk.CopyTo(reinterpret_cast<std::byte*>(shard.data() + chunk.offset));
      bytes += chunk.size;
    }
    ASSERT_EQ(bytes, message.data_bytes);
  }
}

TEST(UploadRouter, EveryRankGetsItsShardInOrderWhateverTheChunks) {
  for (int seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int ranks = 1 + seed % 4;
    const Plan plan =
        MakePlanOver(RandomSpec(random),
                     seed % 2 == 0 ? v1::BALANCER_CONTIGUOUS : v1::BALANCER_HEAD_TAIL, ranks);
    UploadRouter upload(plan);
    Bytes tensors;
    std::map<v1::TensorId, uint64_t> sent;
    for (const v1::TensorId tensor : {v1::TENSOR_ID_Q, v1::TENSOR_ID_K, v1::TENSOR_ID_V}) {
      tensors[tensor] = RandomBytes(random, ShapeOf(tensor, plan.spec).bytes());
    }
    std::vector<Bytes> shards(ranks);
    while (!upload.complete()) {
      ASSERT_FALSE(upload.CheckComplete().ok());
      std::vector<DataChunk> chunks;
      for (const auto& [tensor, bytes] : tensors) {
        const uint64_t left = bytes.size() - sent[tensor];
        if (left == 0 || random() % 3 == 0) continue;
        const uint64_t size = std::min<uint64_t>(left, 1 + random() % 40'000);
        chunks.push_back(Scattered(random, tensor, sent[tensor], bytes.substr(sent[tensor], size)));
        sent[tensor] += size;
      }
      if (chunks.empty()) continue;
      const auto taken = upload.Take(EncodeChunks(chunks));
      ASSERT_TRUE(taken.ok()) << taken.status();
      for (int rank = 0; rank < ranks; ++rank) {
        if (random() % 3 != 0) continue;
        ASSERT_NO_FATAL_FAILURE(Collect(upload, rank, shards[rank]));
      }
    }
    ASSERT_TRUE(upload.CheckComplete().ok());
    for (int rank = 0; rank < ranks; ++rank) {
      ASSERT_NO_FATAL_FAILURE(Collect(upload, rank, shards[rank]));
      for (const auto& [tensor, bytes] : tensors) {
        ASSERT_EQ(shards[rank][tensor], ShardOf(plan, tensor, bytes, rank))
            << TensorName(tensor) << " of rank " << rank;
      }
    }
  }
}

// Takes all that waits for `rank` as a worker does, in whatever order its blocks grow.
void CollectAnyOrder(UploadRouter& upload, int rank, Bytes& shards) {
  while (!upload.queue(rank).empty()) {
    const OutgoingMessage message = upload.queue(rank).Pop();
    const auto chunks = ParseChunks(message.buffer);
    ASSERT_TRUE(chunks.ok()) << chunks.status();
    for (const DataChunk& chunk : *chunks) {
      std::string& shard = shards[chunk.tensor];
      shard.resize(std::max<size_t>(shard.size(), chunk.offset + chunk.size));
      chunk.CopyTo(reinterpret_cast<std::byte*>(shard.data() + chunk.offset));
    }
  }
}

TEST(UploadRouter, SendsWhatIsPerHeadToEveryRank) {
  v1::AttentionSpec spec = SmallSpec();
  spec.set_alibi_slopes(true);
  spec.set_sink_logits(true);
  const Plan plan = MakePlanOver(spec, v1::BALANCER_CONTIGUOUS, 3);
  UploadRouter upload(plan);
  ASSERT_TRUE(upload.Take(OneChunk(v1::TENSOR_ID_SINK_LOGITS, 0, "sinklogi")).ok());
  EXPECT_EQ(upload.waiting_bytes(), 8u);
  EXPECT_EQ(upload.RouteCopies(), 16u);
  ASSERT_TRUE(upload.Take(OneChunk(v1::TENSOR_ID_ALIBI_SLOPES, 0, "slop")).ok());
  ASSERT_TRUE(upload.Take(OneChunk(v1::TENSOR_ID_ALIBI_SLOPES, 4, "es!!")).ok());
  while (!upload.routed()) upload.RouteCopies();
  for (int rank = 0; rank < 3; ++rank) {
    Bytes shards;
    ASSERT_NO_FATAL_FAILURE(Collect(upload, rank, shards));
    EXPECT_EQ(shards, (Bytes{{v1::TENSOR_ID_ALIBI_SLOPES, "slopes!!"},
                             {v1::TENSOR_ID_SINK_LOGITS, "sinklogi"}}));
  }
}

TEST(UploadRouter, SendsTheBiasOfItsQueriesToEachRank) {
  for (int seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    v1::AttentionSpec spec = RandomSpec(random);
    spec.mutable_bias()->set_boolean(random() % 2 == 0);
    spec.mutable_bias()->set_per_batch(random() % 2 == 0);
    spec.mutable_bias()->set_per_head(random() % 2 == 0);
    const Plan plan = MakePlanOver(spec, v1::BALANCER_HEAD_TAIL, 1 + seed % 4);
    UploadRouter upload(plan);
    const std::string bias = RandomBytes(random, ShapeOf(v1::TENSOR_ID_BIAS, spec).bytes());
    for (size_t sent = 0; sent < bias.size();) {
      const std::string part = bias.substr(sent, 1 + random() % 50'000);
      const DataChunk chunk = Scattered(random, v1::TENSOR_ID_BIAS, sent, part);
      ASSERT_TRUE(upload.Take(Message({chunk})).ok());
      sent += part.size();
    }
    EXPECT_TRUE(upload.routed());
    for (int rank = 0; rank < plan.ranks(); ++rank) {
      Bytes shards;
      ASSERT_NO_FATAL_FAILURE(Collect(upload, rank, shards));
      ASSERT_EQ(shards[v1::TENSOR_ID_BIAS], ShardOf(plan, v1::TENSOR_ID_BIAS, bias, rank));
    }
  }
}

// One block for each batch row, whose queries are elsewhere.
TEST(UploadRouter, SendsASharedBiasToThePlaceOfEachBatchRow) {
  v1::AttentionSpec spec = SmallSpec();
  spec.set_batch(2);
  for (const int64_t first : {2, 6}) {
    v1::Documents& documents = *spec.add_masks()->mutable_documents();
    documents.add_q_lengths(first);
    documents.add_q_lengths(8 - first);
    documents.add_kv_lengths(3);
    documents.add_kv_lengths(3);
  }
  spec.mutable_bias()->set_per_head(true);
  const Plan plan = MakePlanOver(spec, v1::BALANCER_PER_DOCUMENT, 2);
  ASSERT_EQ(plan.q.rows.size(), 2u);
  ASSERT_NE(plan.q.rows[0], plan.q.rows[1]);
  std::mt19937 random(1);
  const TensorShape shape = ShapeOf(v1::TENSOR_ID_BIAS, spec);
  const std::string bias = RandomBytes(random, shape.bytes());
  UploadRouter upload(plan);
  ASSERT_TRUE(upload.Take(Message({Scattered(random, v1::TENSOR_ID_BIAS, 0, bias)})).ok());
  EXPECT_TRUE(upload.queue(0).empty());
  EXPECT_EQ(upload.waiting_bytes(), bias.size());
  uint64_t more = 0;
  while (!upload.routed()) more += upload.RouteCopies();
  EXPECT_EQ(more, bias.size());
  for (int rank = 0; rank < 2; ++rank) {
    std::string expected;
    for (const RowLayout& row : plan.q.rows) {
      for (int64_t head = 0; head < 2; ++head) {
        for (const Segment& segment : row[rank]) {
          expected += bias.substr((head * 8 + segment.begin) * shape.row_bytes,
                                  segment.size() * shape.row_bytes);
        }
      }
    }
    Bytes shards;
    ASSERT_NO_FATAL_FAILURE(CollectAnyOrder(upload, rank, shards));
    EXPECT_EQ(shards[v1::TENSOR_ID_BIAS], expected) << "rank " << rank;
  }
}

// 4 MiB to 64 ranks are 256 MiB: they are not there at a time.
TEST(UploadRouter, LetsCopiesWaitForRoom) {
  v1::AttentionSpec spec = SmallSpec();
  spec.set_q_heads(1 << 20);
  spec.set_alibi_slopes(true);
  const Plan plan = MakePlanOver(spec, v1::BALANCER_CONTIGUOUS, 64);
  UploadRouter upload(plan);
  const std::string slopes((4 << 20) - 100, 's');
  ASSERT_TRUE(upload.Take(OneChunk(v1::TENSOR_ID_ALIBI_SLOPES, 0, slopes)).ok());
  ASSERT_TRUE(upload.Take(OneChunk(v1::TENSOR_ID_Q, 0, "behind it waits the rest")).ok());
  const uint64_t waiting = upload.waiting_bytes();
  EXPECT_EQ(waiting, slopes.size() + 24);
  const uint64_t more = upload.RouteCopies();
  EXPECT_LE(more, UploadRouter::kCopiedBytes);
  uint64_t queued = 0;
  for (int rank = 0; rank < 64; ++rank) queued += upload.queue(rank).data_bytes();
  EXPECT_EQ(queued + upload.waiting_bytes(), waiting + more);
  EXPECT_EQ(upload.Clear(), waiting + more);
  EXPECT_TRUE(upload.routed());
}

TEST(UploadRouter, NothingOfAMessageThatIsRefusedIsQueued) {
  const Plan plan = MakePlanOver(SmallSpec(), v1::BALANCER_CONTIGUOUS, 1);
  UploadRouter upload(plan);
  DataChunk good{v1::TENSOR_ID_Q, 0, 4, {grpc::Slice("qqqq")}};
  DataChunk gap{v1::TENSOR_ID_Q, 5, 4, {grpc::Slice("qqqq")}};
  EXPECT_EQ(upload.Take(Message({good, gap})).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(upload.Clear(), 0u);  // bytes that nobody has counted as held
}

TEST(UploadRouter, LargeMessagesAreCutIntoMessagesOfAMebibyte) {
  v1::AttentionSpec spec = SmallSpec();
  spec.set_q_len(100'000);
  const Plan plan = MakePlanOver(spec, v1::BALANCER_CONTIGUOUS, 1);
  UploadRouter upload(plan);
  ASSERT_TRUE(upload.Take(OneChunk(v1::TENSOR_ID_Q, 0, std::string(3'000'000, 'q'))).ok());
  std::vector<uint64_t> sizes;
  while (!upload.queue(0).empty()) sizes.push_back(upload.queue(0).Pop().data_bytes);
  EXPECT_THAT(sizes, ::testing::ElementsAre(kChunkBytes, kChunkBytes, 3'000'000 - 2 * kChunkBytes));
}

TEST(UploadRouter, SmallRunsOfManyChunksShareAMessage) {
  const Plan plan = MakePlanOver(SmallSpec(), v1::BALANCER_HEAD_TAIL, 2);
  UploadRouter upload(plan);
  const std::string q(ShapeOf(v1::TENSOR_ID_Q, plan.spec).bytes(), 'q');
  for (size_t offset = 0; offset < q.size(); offset += 8) {
    ASSERT_TRUE(upload.Take(OneChunk(v1::TENSOR_ID_Q, offset, q.substr(offset, 8))).ok());
  }
  const OutgoingMessage message = upload.queue(0).Pop();
  EXPECT_TRUE(upload.queue(0).empty());
  EXPECT_EQ(message.data_bytes, q.size() / 2);
  EXPECT_EQ(ParseChunks(message.buffer)->size(), 1u);  // they continue each other in the shard
}

TEST(UploadRouter, RowsOfTwoBytesCrossWithinTheLimitsOfAMessage) {
  v1::AttentionSpec spec = SmallSpec();
  spec.set_head_dim(1);
  spec.set_dtype(v1::DTYPE_BF16);
  spec.set_kv_heads(1);
  spec.set_q_heads(100'000);
  const Plan plan = MakePlanOver(spec, v1::BALANCER_HEAD_TAIL, 4);
  std::mt19937 random(1);
  const std::string q = RandomBytes(random, ShapeOf(v1::TENSOR_ID_Q, plan.spec).bytes());
  UploadRouter upload(plan);
  ASSERT_TRUE(upload.Take(OneChunk(v1::TENSOR_ID_Q, 0, q)).ok());
  DownloadRouter download(plan);
  std::string out(q.size(), '\0');
  for (int rank = 0; rank < 4; ++rank) {
    Bytes shards;
    ASSERT_NO_FATAL_FAILURE(Collect(upload, rank, shards));
    ASSERT_EQ(shards[v1::TENSOR_ID_Q], ShardOf(plan, v1::TENSOR_ID_Q, q, rank));
    ASSERT_TRUE(download.Take(rank, OneChunk(v1::TENSOR_ID_OUT, 0, shards[v1::TENSOR_ID_Q])).ok());
  }
  for (const OutgoingMessage& message : download.messages()) {
    ASSERT_LE(message.buffer.Length(), kMaxMessageBytes);
    const auto chunks = ParseChunks(message.buffer);
    ASSERT_TRUE(chunks.ok()) << chunks.status();
    for (const DataChunk& chunk : *chunks) {
      chunk.CopyTo(reinterpret_cast<std::byte*>(out.data() + chunk.offset));
    }
  }
  EXPECT_EQ(out, q);
}

TEST(UploadRouter, RefusesWhatIsNoUploadNamingTheField) {
  const Plan plan = MakePlanOver(SmallSpec(), v1::BALANCER_CONTIGUOUS, 2);
  const uint64_t q_bytes = ShapeOf(v1::TENSOR_ID_Q, plan.spec).bytes();
  const struct {
    grpc::ByteBuffer message;
    std::string words;
  } kCases[] = {
      {OneChunk(v1::TENSOR_ID_OUT, 0, "out!"), "chunks.tensor is out"},
      {OneChunk(v1::TENSOR_ID_BIAS, 0, "bias"), "chunks.tensor is bias"},
      {OneChunk(v1::TENSOR_ID_UNSPECIFIED, 0, "none"), "chunks.tensor is"},
      {OneChunk(99, 0, "what"), "chunks.tensor is tensor 99"},
      {OneChunk(v1::TENSOR_ID_Q, 4, "late"), "a gap"},
      {OneChunk(v1::TENSOR_ID_Q, 0, ""), "empty"},
      {OneChunk(v1::TENSOR_ID_Q, 0, std::string(q_bytes + 1, 'q')), "past the tensor's end"},
      {OneChunk(v1::TENSOR_ID_Q, uint64_t{1} << 63, "far!"), "a gap"},
      {Message({{v1::TENSOR_ID_K, 0, 4, {grpc::Slice("kkkk")}},
                {v1::TENSOR_ID_K, 3, 4, {grpc::Slice("kkkk")}}}),
       "an overlap"},
  };
  for (const auto& [message, words] : kCases) {
    UploadRouter upload(plan);
    const auto taken = upload.Take(message);
    EXPECT_EQ(taken.status().code(), absl::StatusCode::kInvalidArgument) << words;
    EXPECT_THAT(std::string(taken.status().message()), HasSubstr(words));
  }
}

TEST(UploadRouter, CountsWhatItDrops) {
  const Plan plan = MakePlanOver(SmallSpec(), v1::BALANCER_CONTIGUOUS, 2);
  UploadRouter upload(plan);
  ASSERT_TRUE(upload.Take(OneChunk(v1::TENSOR_ID_Q, 0, std::string(100, 'q'))).ok());
  EXPECT_EQ(upload.Clear(), 100u);
  EXPECT_TRUE(upload.queue(0).empty());
  EXPECT_EQ(upload.Clear(), 0u);
}

TEST(DownloadRouter, PutsEveryByteWhereItBelongsWhateverTheOrder) {
  for (int seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int ranks = 1 + seed % 4;
    const Plan plan =
        MakePlanOver(RandomSpec(random),
                     seed % 2 == 0 ? v1::BALANCER_CONTIGUOUS : v1::BALANCER_HEAD_TAIL, ranks);
    Bytes expected, received;
    struct Piece {
      int rank;
      v1::TensorId tensor;
      uint64_t offset;
      std::string bytes;
    };
    std::vector<Piece> pieces;
    for (const v1::TensorId tensor : {v1::TENSOR_ID_OUT, v1::TENSOR_ID_LSE}) {
      expected[tensor] = RandomBytes(random, ShapeOf(tensor, plan.spec).bytes());
      received[tensor].resize(expected[tensor].size());
      for (int rank = 0; rank < ranks; ++rank) {
        const std::string shard = ShardOf(plan, tensor, expected[tensor], rank);
        for (size_t done = 0; done < shard.size();) {
          const size_t size = std::min<size_t>(shard.size() - done, 1 + random() % 30'000);
          pieces.push_back({rank, tensor, done, shard.substr(done, size)});
          done += size;
        }
      }
    }
    std::shuffle(pieces.begin(), pieces.end(), random);
    DownloadRouter download(plan);
    for (const Piece& piece : pieces) {
      const DataChunk chunk = Scattered(random, piece.tensor, piece.offset, piece.bytes);
      const absl::Status status = download.Take(piece.rank, Message({chunk}));
      ASSERT_TRUE(status.ok()) << status;
    }
    for (const OutgoingMessage& message : download.messages()) {
      const auto chunks = ParseChunks(message.buffer);
      ASSERT_TRUE(chunks.ok()) << chunks.status();
      for (const DataChunk& chunk : *chunks) {
        chunk.CopyTo(reinterpret_cast<std::byte*>(received[chunk.tensor].data() + chunk.offset));
      }
    }
    for (int rank = 0; rank < ranks; ++rank) EXPECT_TRUE(download.CheckComplete(rank).ok());
    ASSERT_EQ(received, expected);
  }
}

TEST(DownloadRouter, TrustsNoRank) {
  const Plan plan = MakePlanOver(SmallSpec(), v1::BALANCER_CONTIGUOUS, 2, /*lse=*/false);
  const uint64_t shard = MapOf(plan, v1::TENSOR_ID_OUT).ShardBytes(0);
  const struct {
    grpc::ByteBuffer message;
    std::string words;
  } kCases[] = {
      {OneChunk(v1::TENSOR_ID_LSE, 0, "lse!"), "not asked for"},
      {OneChunk(v1::TENSOR_ID_Q, 0, "qqqq"), "not asked for"},
      {OneChunk(v1::TENSOR_ID_OUT, 0, ""), "empty"},
      {OneChunk(v1::TENSOR_ID_OUT, shard - 3, "oooo"), "past the tensor's end"},
      {OneChunk(v1::TENSOR_ID_OUT, ~uint64_t{0}, "oooo"), "past the tensor's end"},
      {Message({{v1::TENSOR_ID_OUT, 0, 4, {grpc::Slice("oooo")}},
                {v1::TENSOR_ID_OUT, 2, 4, {grpc::Slice("oooo")}}}),
       "repeats"},
  };
  for (const auto& [message, words] : kCases) {
    DownloadRouter download(plan);
    const absl::Status status = download.Take(0, message);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << words;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  }
  DownloadRouter download(plan);
  EXPECT_THAT(std::string(download.CheckComplete(0).message()), HasSubstr("rank 0"));
  ASSERT_TRUE(download.Take(0, OneChunk(v1::TENSOR_ID_OUT, 0, std::string(shard, 'o'))).ok());
  EXPECT_TRUE(download.CheckComplete(0).ok());
  EXPECT_FALSE(download.CheckComplete(1).ok());
}

}  // namespace
}  // namespace ringserve
