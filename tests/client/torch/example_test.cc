// The examples run as their comments say.
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include "tests/client/ringctl/scratch_folder.h"
#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

TEST(Example, GivesTheSameNumbersHereAndServed) {
  Cluster cluster({.workers = 2});
  Spawner spawner;
  const std::unique_ptr<Process> example =
      spawner.Start(Binary("context_parallel_example"), {cluster.address(), "300"});
  EXPECT_EQ(example->WaitForExit(), 0) << example->output() << example->log();
  EXPECT_THAT(example->output(), ::testing::HasSubstr("300 tokens, 2 layers"));
  EXPECT_THAT(example->output(), ::testing::HasSubstr("2 calls and 2 backward"));
}

TEST(Example, SaysWhyItFails) {
  Spawner spawner;
  const std::unique_ptr<Process> nobody =
      spawner.Start(Binary("context_parallel_example"), {"127.0.0.1:1", "3"});
  EXPECT_EQ(nobody->WaitForExit(), 1);
  EXPECT_THAT(nobody->log(), ::testing::HasSubstr("UNAVAILABLE"));
  const std::unique_ptr<Process> wrong =
      spawner.Start(Binary("context_parallel_example"), {"127.0.0.1:1"});
  EXPECT_EQ(wrong->WaitForExit(), 2);
}

struct ServedModuleRun {
  std::optional<int> status;
  std::string output, log;
};

// served_module with a module whose forward is `body`.
ServedModuleRun RunServedModule(const std::string& body, const at::Tensor& here,
                                const at::Tensor& served, const std::string& server) {
  const ScratchFolder folder;
  torch::jit::Module model("model");
  model.define("def forward(self, x):\n    return " + body + "\n");
  model.save(folder.Path("model.pt"));
  c10::Dict<std::string, std::tuple<at::Tensor>> inputs;
  inputs.insert("here", std::make_tuple(here));
  inputs.insert("served", std::make_tuple(served));
  const std::vector<char> bytes = torch::jit::pickle_save(inputs);
  folder.Write("inputs.pt", {bytes.begin(), bytes.end()});
  Spawner spawner;
  const std::unique_ptr<Process> program = spawner.Start(
      Binary("served_module"), {folder.Path("model.pt"), folder.Path("inputs.pt"), server});
  const std::optional<int> status = program->WaitForExit();
  return {status, program->output(), program->log()};
}

TEST(ServedModule, GivesTheSameNumbersHereAndServed) {
  Cluster cluster({.workers = 2});
  const at::Tensor x = at::randn({1, 2, 300, 16});
  const ServedModuleRun run = RunServedModule(
      "torch.scaled_dot_product_attention(x, x, x, is_causal=True)", x, x, cluster.address());
  EXPECT_EQ(run.status, 0) << run.output << run.log;
  EXPECT_THAT(run.output, ::testing::HasSubstr("1 attention calls served, the last by 2"));
}

TEST(ServedModule, FailsWhereTheNumbersDiffer) {
  Cluster cluster({.workers = 2});
  const at::Tensor x = at::randn({1, 2, 300, 16});
  for (const at::Tensor& other : {x * 1.001, x * std::nan("")}) {
    const ServedModuleRun run =
        RunServedModule("torch.scaled_dot_product_attention(x, x, x)", other, x, cluster.address());
    EXPECT_EQ(run.status, 1) << run.log;
    EXPECT_THAT(run.output, ::testing::HasSubstr("1 attention calls served"));
  }
}

TEST(ServedModule, FailsWhereNothingIsServedOrTheShapesDiffer) {
  const at::Tensor x = at::ones({2, 3});
  const ServedModuleRun unserved = RunServedModule("x + 1", x, x, "127.0.0.1:1");
  EXPECT_EQ(unserved.status, 1);
  EXPECT_THAT(unserved.output, ::testing::HasSubstr("0 attention calls served\n"));
  EXPECT_THAT(unserved.output, ::testing::HasSubstr("of 6 numbers, of the largest: 0.0e+00"));
  const ServedModuleRun row = RunServedModule("x + 1", x, x[0], "127.0.0.1:1");
  EXPECT_EQ(row.status, 1);
  EXPECT_THAT(row.log, ::testing::HasSubstr("differ in shape"));
}

TEST(ServedModule, SaysWhyItFails) {
  Spawner spawner;
  const auto usage = spawner.Start(Binary("served_module"), {"model.pt", "inputs.pt"});
  EXPECT_EQ(usage->WaitForExit(), 2);
  const auto unreadable = spawner.Start(
      Binary("served_module"), {"model.pt", "inputs.pt", "127.0.0.1:1", "/nowhere/mask.json"});
  EXPECT_EQ(unreadable->WaitForExit(), 1);
  EXPECT_THAT(unreadable->log(), ::testing::HasSubstr("/nowhere/mask.json: cannot be opened"));
}

}  // namespace
}  // namespace ringserve::test
