#include "tests/bench/mask_zoo.h"

#include <random>

namespace ringserve::bench {
namespace {

NamedMask Causal(const std::string& name, int64_t length) {
  NamedMask named{name, length, length, {}};
  named.mask.set_causal(true);
  return named;
}

NamedMask Documents(const std::string& name, const std::vector<int64_t>& lengths, int64_t length,
                    bool causal) {
  NamedMask named{name, length, length, {}};
  named.mask.set_causal(causal);
  for (const int64_t document : lengths) named.mask.mutable_documents()->add_q_lengths(document);
  return named;
}

NamedMask Window(const std::string& name, int64_t length, int64_t left, int64_t right) {
  NamedMask named{name, length, length, {}};
  named.mask.mutable_window()->set_left(left);
  named.mask.mutable_window()->set_right(right);
  return named;
}

// A quarter of the blocks, and the diagonal's, so that every query sees something.
NamedMask RandomBlocks(const std::string& name, int64_t length, int64_t block) {
  NamedMask named{name, length, length, {}};
  v1::BlockMask& blocks = *named.mask.mutable_blocks();
  blocks.set_q_block(block);
  blocks.set_kv_block(block);
  std::mt19937 random(1);
  const int64_t columns = length / block;
  for (int64_t row = 0; row < length / block; ++row) {
    std::string bits((columns + 7) / 8, '\0');
    for (int64_t column = 0; column < columns; ++column) {
      if (random() % 4 == 0 || row == column)
        bits[column / 8] = static_cast<char>(bits[column / 8] | 1 << column % 8);
    }
    blocks.mutable_bits()->append(bits);
  }
  return named;
}

NamedMask TwoSlices(const std::string& name, int64_t length) {
  NamedMask named{name, length, length, {}};
  v1::Slice& causal = *named.mask.add_slices();
  causal.set_q_end(length / 2);
  causal.set_k_end(length / 2);
  causal.set_hi(0);
  v1::Slice& full = *named.mask.add_slices();
  full.set_q_begin(length / 2);
  full.set_q_end(length);
  full.set_k_begin(length / 4);
  full.set_k_end(length);
  return named;
}

}  // namespace

std::vector<int64_t> SkewedDocuments(int64_t length) {
  const int64_t unit = length / 4'096;
  std::vector<int64_t> documents;
  for (int64_t i = 0; i < 30; ++i) documents.push_back((24 + i % 5 * 4) * unit);  // 960 in all
  documents.insert(documents.begin() + 7, 512 * unit);
  documents.insert(documents.begin() + 20, 480 * unit);
  documents.insert(documents.begin() + 15, (4'096 - 960 - 512 - 480) * unit);
  return documents;
}

std::vector<NamedMask> AreaMasks(int64_t length) {
  return {Causal("causal", length), Window("window 1,024", length, 1'023, 0),
          Documents("32 causal documents", std::vector<int64_t>(32, length / 32), length, true)};
}

std::vector<NamedMask> TwelveMasks(int64_t length) {
  NamedMask bottom_right = Causal("bottom-right causal, Tq = S/4", length);
  bottom_right.q_len = length / 4;
  bottom_right.mask.set_bottom_right(true);
  NamedMask sinks = Window("window 1,024 and 4 sinks", length, 1'023, 0);
  sinks.mask.set_causal(true);
  sinks.mask.set_sinks(4);
  NamedMask prefix = Causal("prefix-LM, S/4", length);
  prefix.mask.set_prefix(length / 4);
  const std::vector<int64_t> skewed = SkewedDocuments(length);
  return {{"full", length, length, {}},
          Causal("causal", length),
          bottom_right,
          Window("window 1,024", length, 1'023, 0),
          sinks,
          Window("window of 512 both ways", length, 512, 512),
          prefix,
          Documents("32 causal documents", std::vector<int64_t>(32, length / 32), length, true),
          Documents("skewed causal documents", skewed, length, true),
          Documents("skewed full documents", skewed, length, false),
          RandomBlocks("25 % of blocks of 128", length, 128),
          TwoSlices("a causal and a full slice", length)};
}

}  // namespace ringserve::bench
