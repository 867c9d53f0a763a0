// ringserve_bench: the stopwatch of `./dev bench`. Reads commands, one a line, from stdin, and
// answers each with one JSON object on stdout, so that whoever drives it can let contestants take
// turns on the same tensors.
//
//   shape LENGTH DTYPE   makes tensors: batch 1, 8 query heads, 2 K/V heads, dim 128, causal
//   write FOLDER         writes them to FOLDER/q, k and v
//   local                one pass of LibTorch's kernel, in this process
//   remote WORKERS       one request to --server, spread over WORKERS workers
//   errors               of the last local and remote answers, against fp64
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "ringserve/client.h"
#include "tests/bench/unsharded.h"

namespace ringserve::bench {
namespace {

using nlohmann::ordered_json;

constexpr int kQueryHeads = 8, kKvHeads = 2, kDim = 128;

v1::AttentionSpec SpecOf(int64_t length, v1::DType dtype) {
  v1::AttentionSpec spec;
  spec.set_batch(1);
  spec.set_q_heads(kQueryHeads);
  spec.set_kv_heads(kKvHeads);
  spec.set_q_len(length);
  spec.set_kv_len(length);
  spec.set_head_dim(kDim);
  spec.set_dtype(dtype);
  spec.add_masks()->set_causal(true);
  return spec;
}

// Throws where a command cannot be carried out: a measurement that failed is none.
class Stopwatch {
 public:
  explicit Stopwatch(std::unique_ptr<Client> client) : client_(std::move(client)) {}

  ordered_json Do(const std::string& line) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    if (command == "shape") {
      int64_t length = 0;
      std::string dtype;
      words >> length >> dtype;
      return Shape(length, dtype);
    }
    if (unsharded_ == nullptr) throw std::runtime_error("no shape yet");
    if (command == "write") {
      std::string folder;
      words >> folder;
      return Write(folder);
    }
    if (command == "local") return {{"seconds", unsharded_->Run()}};
    if (command == "remote") {
      int workers = 0;
      words >> workers;
      return Remote(workers);
    }
    if (command == "errors") return CompareErrors();
    throw std::runtime_error("no such command: " + line);
  }

 private:
  ordered_json Shape(int64_t length, const std::string& name) {
    v1::DType dtype = v1::DTYPE_UNSPECIFIED;
    if (name == "f32") dtype = v1::DTYPE_F32;
    if (name == "f64") dtype = v1::DTYPE_F64;
    if (name == "bf16") dtype = v1::DTYPE_BF16;
    if (name == "f16") dtype = v1::DTYPE_F16;
    spec_ = SpecOf(length, dtype);
    const absl::StatusOr<TensorBytes> bytes = BytesOf(spec_);
    if (!bytes.ok()) throw std::runtime_error(bytes.status().ToString());
    unsharded_.reset();
    unsharded_ = std::make_unique<Unsharded>(kQueryHeads, kKvHeads, length, kDim, dtype);
    out_.assign(bytes->out, std::byte{0xff});
    lse_.assign(bytes->lse, std::byte{0xff});
    return {{"threads", Threads()}, {"capability", KernelCapability()}};
  }

  ordered_json Write(const std::string& folder) const {
    for (const auto& [name, bytes] :
         {std::pair{"/q", unsharded_->q()}, {"/k", unsharded_->k()}, {"/v", unsharded_->v()}}) {
      std::ofstream file(folder + name, std::ios::binary);
      file.write(reinterpret_cast<const char*>(bytes.data()),
                 static_cast<std::streamsize>(bytes.size()));
      if (!file.flush()) throw std::runtime_error("cannot write " + folder + name);
    }
    return ordered_json::object();
  }

  ordered_json Remote(int workers) {
    v1::AttendHeader header;
    *header.mutable_spec() = spec_;
    header.mutable_options()->set_workers(workers);
    header.mutable_options()->set_return_lse(true);
    std::fill(out_.begin(), out_.end(), std::byte{0xff});
    std::fill(lse_.begin(), lse_.end(), std::byte{0xff});
    const auto begin = std::chrono::steady_clock::now();
    const absl::StatusOr<AttendResult> result =
        client_->Attend(header, {unsharded_->q(), unsharded_->k(), unsharded_->v()}, {out_, lse_},
                        {.max_attempts = 1});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (!result.ok()) throw std::runtime_error(result.status().ToString());
    const v1::Statistics& statistics = result->statistics;
    const v1::PlanSummary& plan = statistics.plan();
    uint64_t exchanged = 0;
    for (const v1::RankStatistics& rank : statistics.ranks()) exchanged += rank.bytes_sent();
    return {{"seconds", seconds.count()},
            {"upload", statistics.upload_seconds()},
            {"wait", statistics.queued_seconds() + statistics.wait_seconds()},
            {"compute", statistics.compute_seconds()},
            {"download", statistics.download_seconds()},
            {"upload_bytes", statistics.upload_bytes()},
            {"exchanged_bytes", exchanged},
            {"download_bytes", statistics.download_bytes()},
            {"balancer", v1::Balancer_Name(plan.balancer())},
            {"rotate", v1::RotateMethod_Name(plan.rotate())},
            {"workers", plan.workers()},
            {"imbalance", plan.imbalance()}};
  }

  ordered_json CompareErrors() const {
    const Errors local = unsharded_->OwnErrors(), remote = unsharded_->ErrorsOf(out_, lse_);
    return {{"local_out", local.out},
            {"local_lse", local.lse},
            {"remote_out", remote.out},
            {"remote_lse", remote.lse}};
  }

  const std::unique_ptr<Client> client_;
  v1::AttentionSpec spec_;
  std::unique_ptr<Unsharded> unsharded_;
  std::vector<std::byte> out_, lse_;
};

int Main(int argc, char** argv) {
  ClientOptions options;
  CLI::App app("The stopwatch of ./dev bench", "ringserve_bench");
  app.add_option("--server", options.server, "HOST:PORT or unix:PATH")->required();
  CLI11_PARSE(app, argc, argv);
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(options);
  if (!client.ok()) {
    std::fprintf(stderr, "ringserve_bench: %s\n", client.status().ToString().c_str());
    return 2;
  }
  Stopwatch stopwatch(*std::move(client));
  try {
    for (std::string line; std::getline(std::cin, line);) {
      std::printf("%s\n", stopwatch.Do(line).dump().c_str());
      std::fflush(stdout);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ringserve_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace ringserve::bench

int main(int argc, char** argv) { return ringserve::bench::Main(argc, argv); }
