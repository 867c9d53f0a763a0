// The connection on which a worker has its part of a job breaks, while worker and membership go on:
// the worker cannot be used for anything else before it has done with that job.
#include <optional>
#include <string>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/request.h"
#include "tests/integration/tcp_relay.h"
#include "tests/support/cluster.h"

namespace ringserve::test {
namespace {

uint64_t PeakOf(Cluster& cluster, const v1::AttendHeader& header) {
  v1::PlanRequest request;
  *request.mutable_spec() = header.spec();
  *request.mutable_options() = header.options();
  const absl::StatusOr<v1::PlanResponse> planned = cluster.client().Plan(request);
  EXPECT_TRUE(planned.ok()) << planned.status();
  return planned.ok() ? planned->plan().peak_bytes(0) : 1;
}

TEST(BrokenCall, TheNextJobWaitsForTheWorkersMemoryAndNotInTheWorker) {
  // One tile, which takes seconds and is not interrupted.
  const Request broken(MakeHeader(MakeSpec(32'768, 32'768, 2, 16, 16), "broken", 1), 1);
  const Request next(MakeHeader(MakeSpec(32'768, 64, 2, 16, 16), "next", 1), 2);
  Cluster cluster({.workers = 0});
  const uint64_t memory_bytes = PeakOf(cluster, broken.header()) * 5 / 4;
  ASSERT_GT(2 * PeakOf(cluster, next.header()), memory_bytes) << "there is room for both";
  TcpRelay relay;
  cluster.AddWorker({"--memory-bytes", absl::StrCat(memory_bytes), "--advertise", relay.address()});
  const std::optional<std::string> address = cluster.worker(0).WaitForAddress();
  ASSERT_TRUE(address.has_value()) << cluster.Logs();
  relay.PassTo(*address);
  ASSERT_TRUE(cluster.AwaitWorkers(1)) << cluster.Logs();

  RawCall call(NewChannel(cluster.address()));
  ASSERT_TRUE(call.SendHeader(broken.header()) && call.SendTensors(broken) && call.HalfClose());
  ASSERT_TRUE(cluster.worker(0).WaitForLogLine({"step=0/", "request=broken"}).has_value());
  relay.Break();
  const absl::Status status = call.Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_TRUE(RetryAfter(status).has_value());

  const absl::StatusOr<Answer> answer = next.AskOf(cluster.client(), {.max_attempts = 1});
  ASSERT_TRUE(answer.ok()) << answer.status() << cluster.Logs();
  EXPECT_EQ(next.WhatIsWrong(*answer), "");
  const std::string log = cluster.worker(0).log();
  const size_t ran = log.find("ran job="), given = log.find("request=next");
  ASSERT_TRUE(ran != std::string::npos && given != std::string::npos) << log;
  EXPECT_LT(ran, given) << "it was given the next job while it still had the first\n" << log;
  EXPECT_TRUE(cluster.AwaitIdle());
}

}  // namespace
}  // namespace ringserve::test
