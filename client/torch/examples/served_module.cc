// A saved TorchScript module, run here and with its attention served: the same numbers come out.
//
//   ringctl up --workers 2                                    # in another terminal
//   served_module MODEL.pt INPUTS.pt 127.0.0.1:7070 MASK.json
//
// MODEL.pt as torch.jit.save writes it, its forward gives one tensor. INPUTS.pt as torch.save
// writes {"here": arguments, "served": arguments}, two tuples: a padded batch and the same packed,
// say. MASK.json, of the scope: a Mask in protobuf JSON, or an array with one per batch row.
// `--script FOLDER` of client/python/examples/encoder.py and training.py writes these.
//
// Exit status 1 where the numbers differ, or no attention was served.
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include "absl/status/statusor.h"
#include "client/ringctl/mask_file.h"
#include "ringserve/torch.h"

namespace {

constexpr double kTolerance = 1e-5;  // of the largest number; what f32 rounds differently
constexpr int kWorkers = 2;          // left to itself, the service gives short sequences to one

template <typename T>
T OrThrow(absl::StatusOr<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().ToString());
  return *std::move(result);
}

c10::IValue ReadInputs(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  return torch::jit::pickle_load(bytes);
}

at::Tensor Forward(torch::jit::Module& model, const c10::IValue& inputs, const char* which) {
  return model.forward(inputs.toGenericDict().at(which).toTupleRef().elements().vec()).toTensor();
}

double Difference(const at::Tensor& a, const at::Tensor& b) {
  if (!a.sizes().equals(b.sizes())) throw std::runtime_error("here and served differ in shape");
  return ((a - b).abs().max() / a.abs().max()).item<double>();
}

int Run(const std::string& model_path, const std::string& inputs_path, const std::string& server,
        const std::string& mask_path) {
  ringserve::ContextParallelOptions options;
  options.attention.set_workers(kWorkers);
  if (!mask_path.empty()) {
    const ringserve::MaskFile file = OrThrow(ringserve::ReadMaskFile(mask_path));
    options.masks.assign(file.masks.begin(), file.masks.end());
  }
  torch::jit::Module model = torch::jit::load(model_path);
  const c10::IValue inputs = ReadInputs(inputs_path);
  const c10::NoGradGuard no_grad;
  const at::Tensor here = Forward(model, inputs, "here");

  std::shared_ptr<ringserve::Client> client =
      OrThrow(ringserve::Client::Connect({.server = server}));
  const ringserve::ContextParallel scope(client, std::move(options));
  const at::Tensor served = Forward(model, inputs, "served");

  std::printf("%ld attention calls served", scope.calls());
  if (scope.calls() > 0)
    std::printf(", the last by %d workers", scope.statistics()->plan().workers());
  const double difference = Difference(here, served);
  std::printf("\nlargest difference of %ld numbers, of the largest: %.1e\n", here.numel(),
              difference);
  return difference < kTolerance && scope.calls() > 0 ? 0 : 1;  // not a number: 1
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::fprintf(stderr, "usage: %s MODEL.pt INPUTS.pt HOST:PORT [MASK.json]\n", argv[0]);
    return 2;
  }
  try {
    return Run(argv[1], argv[2], argv[3], argc == 5 ? argv[4] : "");
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "%s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
