#include <errno.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/ringctl/command.h"
#include "client/ringctl/context_task.h"
#include "client/ringctl/demo_text.h"
#include "client/ringctl/follower_count.h"
#include "client/ringctl/format.h"
#include "client/ringctl/names.h"
#include "client/ringctl/progress_bar.h"
#include "proto/machine.h"
#include "ringserve/client.h"

namespace ringserve {
namespace {

struct DemoOptions {
  std::string text;
  uint64_t tokens = 16'384;
  int workers = 0;  // 0: all
};

// 1234567 as "1,234,567".
std::string Grouped(uint64_t number) {
  if (number < 1000) return absl::StrCat(number);
  return absl::StrCat(Grouped(number / 1000), ",", absl::Dec(number % 1000, absl::kZeroPad3));
}

template <typename T>
std::span<const std::byte> Bytes(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

// How many tokens' tensors this machine has memory for.
uint64_t TokensThatFit() {
  const uint64_t available = AvailableMemoryBytes();
  return available == 0 ? std::numeric_limits<uint32_t>::max() : available / kContextBytesPerToken;
}

absl::StatusOr<DemoText> ReadWhatFits(const DemoOptions& options) {
  const uint64_t fit = TokensThatFit();
  absl::StatusOr<DemoText> text = ReadDemoText(options.text, std::min(options.tokens, fit + 1));
  if (text.ok() && text->bytes.size() > fit) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tokens ", options.tokens, " is too much: this machine has memory for the ",
                     "tensors of ", fit, " (", kContextBytesPerToken, " bytes each)"));
  }
  return text;
}

void PrintVerdicts(const std::array<ContextVerdict, kKvHeads>& verdicts, uint64_t tokens) {
  std::printf("\n  context    matched      right    missed    far back   next byte guessed\n");
  for (const ContextVerdict& verdict : verdicts) {
    const std::string share =
        verdict.guesses == 0
            ? "-"
            : absl::StrFormat("%.1f %%", 100.0 * verdict.guessed / verdict.guesses);
    std::printf("  %2d bytes %10s %10s %9s %11s %19s\n", verdict.length,
                Grouped(verdict.matched).c_str(), Grouped(verdict.right).c_str(),
                Grouped(verdict.matched - verdict.right).c_str(), Grouped(verdict.far).c_str(),
                share.c_str());
  }
  double worst = 0;
  for (const ContextVerdict& verdict : verdicts) worst = std::max(worst, verdict.worst);
  std::printf(
      "  matched: the same context occurred before. right: all %d probabilities are the counted "
      "shares\n  (and the log-sum-exp counts the matches) within %.0e in all %zu heads; largest "
      "difference %.1e.\n  far back: right only thanks to bytes more than %s back.\n",
      kByteValues, kTolerance, kSharpness.size(), worst, Grouped(tokens / 4).c_str());
}

void PrintService(const v1::Statistics& statistics, int attempts) {
  const v1::PlanSummary& plan = statistics.plan();
  const uint64_t exchanged = std::accumulate(plan.bytes().begin(), plan.bytes().end(), uint64_t{0});
  std::printf(
      "\n  workers %d, balancer %s (imbalance %.3f), exchange %s%s\n"
      "  bytes: %s up, %s between workers, %s down\n"
      "  seconds: queued %.3f, upload %.3f, wait %.3f, compute %.3f, download %.3f; total %.3f\n",
      plan.workers(), NameOf(plan.balancer()).c_str(), plan.imbalance(),
      NameOf(plan.rotate()).c_str(),
      attempts > 1 ? absl::StrCat(", attempts ", attempts).c_str() : "",
      BytesText(statistics.upload_bytes()).c_str(), BytesText(exchanged).c_str(),
      BytesText(statistics.download_bytes()).c_str(), statistics.queued_seconds(),
      statistics.upload_seconds(), statistics.wait_seconds(), statistics.compute_seconds(),
      statistics.download_seconds(), statistics.total_seconds());
}

// Says what the verdicts mean; the exit code.
int Conclude(const std::array<ContextVerdict, kKvHeads>& verdicts, int workers) {
  int64_t matched = 0, missed = 0;
  for (const ContextVerdict& verdict : verdicts) {
    matched += verdict.matched;
    missed += verdict.matched - verdict.right;
    if (!verdict.first_miss.empty()) std::printf("\n  WRONG %s\n", verdict.first_miss.c_str());
  }
  if (missed > 0) {
    std::printf("\n%s of %s answers are wrong.\n", Grouped(missed).c_str(),
                Grouped(matched).c_str());
    return kExitWrong;
  }
  if (matched == 0) {
    std::fprintf(stderr,
                 "ringctl demo: no %d bytes occur twice in this text, so nothing could be checked: "
                 "take more --tokens or another text\n",
                 kContextLengths[0]);
    return kExitUsage;
  }
  std::printf(
      "\nAll %s answers are right. Attention, spread over %d worker%s, looked up what followed the "
      "same\ncontext anywhere before; a hash table, which knows nothing of attention, counted the "
      "same.\n",
      Grouped(matched).c_str(), workers, workers == 1 ? "" : "s");
  return kExitOk;
}

void PrintNext() {
  std::printf("\nTry next, with `ringctl up --workers 3` running in another terminal:\n");
  if (std::strchr(program_invocation_name, '/') != nullptr) {  // it was not found on PATH
    std::error_code error;
    const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
    std::printf("  PATH=$PATH:%s\n", program.parent_path().c_str());
  }
  std::printf(
      "  ringctl status                          who is there\n"
      "  ringctl plan --q-heads 8 --q-len 100000 --head-dim 128 --mask causal --workers 3\n"
      "                                          how a request would be spread\n"
      "  ringctl attend IN.safetensors --out OUT.safetensors --verify\n"
      "                                          your own q, k and v\n"
      "  ringctl bench --verify                  load; kill -9 a worker meanwhile\n");
}

int RunDemo(const DemoOptions& options, const ClientOptions& server) {
  const absl::StatusOr<DemoText> text = ReadWhatFits(options);
  if (!text.ok()) return Misused(text.status());
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(server);
  if (!client.ok()) return Misused(client.status());
  const uint64_t tokens = text->bytes.size();

  v1::AttendHeader header;
  *header.mutable_spec() = ContextSpec(static_cast<int64_t>(tokens));
  int workers = options.workers;
  if (workers == 0) {
    const absl::StatusOr<v1::GetClusterResponse> cluster = (*client)->GetCluster();
    if (!cluster.ok()) return Failed(cluster.status(), server);
    workers = cluster->workers_size();
  }
  header.mutable_options()->set_workers(workers);
  header.mutable_options()->set_return_lse(true);

  std::printf("Attention over %s bytes of %s%s:\n%d query heads, %d K/V heads, f32, causal.\n",
              Grouped(tokens).c_str(), text->origin.c_str(),
              tokens < options.tokens ? " (all there is)" : "", kQueryHeads, kKvHeads);
  std::fflush(stdout);
  const ContextTensors tensors = MakeContextTensors(text->bytes);
  std::vector<float> out(kQueryHeads * tokens * kByteValues), lse(kQueryHeads * tokens);
  CallOptions call;
  ProgressBar bar(Bytes(tensors.q).size() + Bytes(tensors.k).size() + Bytes(tensors.v).size());
  call.progress = [&](uint64_t done, uint64_t total) { bar.Update(done, total); };
  call.on_retry = [&](int attempt, const absl::Status& why) {
    bar.Clear();
    std::fprintf(stderr, "ringctl demo: attempt %d, because of %s\n", attempt,
                 why.ToString().c_str());
  };
  const absl::StatusOr<AttendResult> result =
      (*client)->Attend(header, {Bytes(tensors.q), Bytes(tensors.k), Bytes(tensors.v)},
                        {.out = std::as_writable_bytes(std::span(out)),
                         .lse = std::as_writable_bytes(std::span(lse))},
                        call);
  bar.Clear();
  if (!result.ok()) return Failed(result.status(), server);

  const auto verdicts = JudgeByCounting(text->bytes, out, lse);
  PrintVerdicts(verdicts, tokens);
  PrintService(result->statistics, result->attempts);
  const int exit_code = Conclude(verdicts, result->statistics.plan().workers());
  if (exit_code == kExitOk) PrintNext();
  return exit_code;
}

}  // namespace

void AddDemoCommand(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<DemoOptions>();
  CLI::App* command = app.add_subcommand(
      "demo", "Attend over a real text, and check every answer against counting");
  command->add_option("TEXT", options->text, "Any file (default: Debian's licence texts)");
  command->add_option("--tokens", options->tokens, "How many of its bytes, from the first on")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 31))
      ->capture_default_str();
  command
      ->add_option("--workers", options->workers,
                   "How many workers are to share the sequence (default: all)")
      ->check(CLI::Range(1, 1024));
  command->callback([options, &invocation] {
    invocation.run = [options, &invocation] { return RunDemo(*options, invocation.client); };
  });
}

}  // namespace ringserve
