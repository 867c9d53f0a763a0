// Reads the fixtures' tensors: a safetensors file held in memory, and golden JSON. For tests only;
// throws.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace ringserve::test {

struct GoldenTensor {
  std::string dtype;  // as the file says it: "F32", "I64", "BF16", ...
  std::vector<int64_t> shape;
  std::span<const uint8_t> bytes;  // inside the file it came from

  // The elements as T, which must have the file's element size.
  template <typename T>
  std::vector<T> As() const {
    if (bytes.size() % sizeof(T) != 0) throw std::runtime_error("wrong element size for " + dtype);
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
};

inline std::string ReadWholeFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// "<source>/tests/<relative>", e.g. GoldenPath("golden/ring.json").
inline std::string GoldenPath(const std::string& relative) {
  return std::string(RINGSERVE_TEST_DATA) + "/" + relative;
}

inline nlohmann::json ReadGoldenJson(const std::string& relative) {
  return nlohmann::json::parse(ReadWholeFile(GoldenPath(relative)));
}

// The tensors stay valid as long as the file lives; it cannot be copied.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path) : content_(ReadWholeFile(path)) {
    uint64_t header_bytes = 0;
    if (content_.size() < 8) throw std::runtime_error(path + " is too short");
    std::memcpy(&header_bytes, content_.data(), 8);
    if (header_bytes > content_.size() - 8)
      throw std::runtime_error(path + " has a header past its end");
    const auto header = nlohmann::json::parse(content_.substr(8, header_bytes));
    const auto* data = reinterpret_cast<const uint8_t*>(content_.data()) + 8 + header_bytes;
    const uint64_t data_bytes = content_.size() - 8 - header_bytes;
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      const auto offsets = entry.at("data_offsets").get<std::vector<uint64_t>>();
      if (offsets[0] > offsets[1] || offsets[1] > data_bytes)
        throw std::runtime_error(name + " lies outside");
      tensors_[name] = {entry.at("dtype").get<std::string>(),
                        entry.at("shape").get<std::vector<int64_t>>(),
                        {data + offsets[0], data + offsets[1]}};
    }
  }
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const GoldenTensor& at(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw std::runtime_error("no tensor " + name);
    return found->second;
  }
  const std::map<std::string, GoldenTensor>& tensors() const { return tensors_; }

 private:
  std::string content_;
  std::map<std::string, GoldenTensor> tensors_;
};

}  // namespace ringserve::test
