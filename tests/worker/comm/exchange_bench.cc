// How fast two worker processes exchange bytes, both ways at once, and how quick a small exchange
// is. Run by hand: exchange_bench [MIB_PER_TURN] [TURNS] [LISTEN]
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "tests/worker/comm/grpc_transport.h"

namespace ringserve::test {
namespace {

using Clock = Communicator::Clock;

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return time.tv_sec + time.tv_usec * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Turn(Rank& rank, Communicator& communicator, uint32_t step, std::vector<std::byte>& out,
            std::vector<std::byte>& in) {
  const Clock::time_point begin = Clock::now();
  const auto ticket = communicator.Post(
      {.job = 1, .step = step},
      std::vector{
          SendOp{.peer = rank.next(), .parts = {out}, .keep_alive = std::make_shared<int>()}},
      std::vector{RecvOp{.peer = rank.next(), .parts = {in}}});
  REQUIRE_OK(ticket.status());
  REQUIRE_OK(communicator.Then(*ticket, Clock::now() + kPatience));
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void Measure(Rank& rank, size_t bytes, int turns) {
  const std::shared_ptr<Communicator> communicator = rank.Build();
  std::vector<std::byte> out(bytes, std::byte{1}), in(bytes), small_out(8), small_in(8);
  uint32_t step = 0;
  double best = std::numeric_limits<double>::max(), quickest = best, sum = 0, cpu = 0;
  for (int turn = -2; turn < turns; ++turn) {
    const double before = CpuSeconds();
    const double seconds = Turn(rank, *communicator, step++, out, in);
    if (turn < 0) continue;
    cpu += CpuSeconds() - before;
    sum += seconds;
    best = std::min(best, seconds);
  }
  for (int turn = 0; turn < 1'000; ++turn) {
    quickest = std::min(quickest, Turn(rank, *communicator, step++, small_out, small_in));
  }
  if (rank.index() == 0) {
    const double gigabytes = static_cast<double>(bytes) * 1e-9;
    std::printf(
        "%.0f MB each way: best %.2f GB/s, mean %.2f GB/s, %.2f CPU s per GB sent and received; 8 "
        "bytes: %.0f us\n",
        gigabytes * 1e3, gigabytes / best, gigabytes * turns / sum, cpu / (gigabytes * turns),
        quickest * 1e6);
  }
  rank.Meet();
}

}  // namespace
}  // namespace ringserve::test

int main(int argc, char** argv) {
  using namespace ringserve::test;
  const size_t bytes = static_cast<size_t>(argc > 1 ? std::atoi(argv[1]) : 64) << 20;
  const int turns = argc > 2 ? std::atoi(argv[2]) : 20;
  RunRanks(RunAs::kProcesses, 2, GrpcOver("bench", argc > 3 ? argv[3] : "127.0.0.1:0"),
           [=](Rank& rank) { Measure(rank, bytes, turns); });
}
