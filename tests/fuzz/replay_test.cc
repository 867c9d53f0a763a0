// Replays a fuzz target's corpus: each input as it is, cut off after every byte, and with every
// byte changed in three ways.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/fuzz/target.h"

namespace {

void Try(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

TEST(Fuzz, KeepsItsPromisesOnTheWholeCorpus) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(
           RINGSERVE_TEST_DATA "/fuzz/corpus/" RINGSERVE_FUZZ_TARGET)) {
    paths.push_back(entry.path());
  }
  ASSERT_GE(paths.size(), 5u);
  std::sort(paths.begin(), paths.end());
  for (const std::filesystem::path& path : paths) {
    SCOPED_TRACE(path.string());
    std::ifstream file(path, std::ios::binary);
    const std::string input((std::istreambuf_iterator<char>(file)), {});
    ASSERT_FALSE(input.empty());
    Try(input);
    for (size_t i = 0; i < input.size(); ++i) {
      Try(input.substr(0, i));
      for (const int change : {0x01, 0x80, 0xFF}) {
        std::string changed = input;
        changed[i] = static_cast<char>(changed[i] ^ change);
        Try(changed);
      }
    }
  }
}

}  // namespace
