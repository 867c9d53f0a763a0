// How Attend calls end that do not end well: clients that go away in any state, workers that break
// the protocol or are lost, a server that shuts down. Whatever happens, a job that was started is
// carried through, and nothing is left.
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "proto/protocol.h"
#include "tests/server/attend_fixture.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using test::ClientCall;
using test::Echo;
using test::FakeShard;
using test::kPatience;
using test::kSlowness;
using test::MakeRequest;
using test::RankRun;
using test::Recall;
using test::Request;
using test::WaitUntil;
using ::testing::HasSubstr;

grpc::Status EndedEarly() { return grpc::Status(grpc::StatusCode::CANCELLED, "ended early"); }

void ExpectStatus(const absl::Status& status, absl::StatusCode code, const std::string& words) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

class AttendEndTest : public test::AttendFixture {
 protected:
  // Two workers. Of the calls of the first job, that of rank 1 goes as far as `until` lets it, then
  // runs `then`; all else is served well.
  void ServeWith(std::function<grpc::Status(RankRun&)> rank_1, AttendOptions options = {}) {
    Serve(std::move(options));
    for (int i = 0; i < 2; ++i) {
      AddWorker([this, rank_1](RankRun& run) {
        if (!run.TakeAssignment()) return EndedEarly();
        ++assigned_;
        if (run.assignment().request_id() != "test-request") return EchoAssigned(run);
        if (run.assignment().rank() == 1) return rank_1(run);
        const grpc::Status status = EchoAssigned(run);
        if (run.context().IsCancelled()) ++broken_;
        return status;
      });
    }
  }

  static grpc::Status EchoAssigned(RankRun& run) {
    if (!run.TakeUpload() || !run.SayReady() || !run.TakeStart() || !run.SendRows() ||
        !run.SendDone()) {
      return EndedEarly();
    }
    return grpc::Status::OK;
  }

  // The service is as it was.
  void ExpectWell() {
    ExpectNothingLeft();
    Request request = MakeRequest(33, 2);
    request.header.set_request_id("another");
    ExpectServed(request);
  }

  absl::Status Result(const Request& request = MakeRequest(64, 2)) {
    const auto call = Open();
    call->SendAll(request);
    return call->Collect(request);
  }

  std::atomic<int> assigned_{0};
  std::atomic<int> broken_{0};  // calls of rank 0 that the coordinator broke
};

// --- the client goes away

TEST_F(AttendEndTest, AClientThatGoesAwayWhileQueuedLeavesTheQueue) {
  absl::Notification go;
  Serve();
  AddWorker(
      [&](RankRun& run) {
        go.WaitForNotification();
        return Echo(run);
      },
      1 << 20);
  Request request = MakeRequest(3'000);  // more than half of the memory
  const auto first = Open();
  ASSERT_TRUE(first->SendHeader(request.header) && first->AwaitAccepted());
  auto second = Open();
  ASSERT_TRUE(second->SendHeader(request.header));
  ASSERT_TRUE(AwaitUnfinished(1, 1));
  second.reset();
  EXPECT_TRUE(AwaitUnfinished(0, 1));
  go.Notify();
  ASSERT_TRUE(first->SendTensors(request) && first->HalfClose());
  EXPECT_TRUE(first->Collect(request).ok());
  End();
}

TEST_F(AttendEndTest, AClientThatGoesAwayWhileUploadingFreesItsRanksAtOnce) {
  ServeWith([](RankRun& run) { return EchoAssigned(run); });
  auto call = Open();
  ASSERT_TRUE(call->SendHeader(MakeRequest(64, 2).header) && call->AwaitAccepted());
  ASSERT_TRUE(call->SendChunk(v1::TENSOR_ID_Q, 0, "qqqq"));
  ASSERT_TRUE(WaitUntil([&] { return assigned_ == 2; }));
  call.reset();
  ExpectNothingLeft();
  EXPECT_TRUE(WaitUntil([&] { return broken_ == 1; }));
  ExpectWell();
}

TEST_F(AttendEndTest, AClientThatGoesAwayBeforeAllRanksAreReadyFreesItsRanksAtOnce) {
  absl::Notification uploaded;
  ServeWith([&](RankRun& run) {
    const bool all = run.TakeUpload();
    uploaded.Notify();
    return all && run.TakeStart() ? grpc::Status::OK : EndedEarly();  // it never says `ready`
  });
  auto call = Open();
  ASSERT_TRUE(call->SendAll(MakeRequest(64, 2)));
  uploaded.WaitForNotification();
  ASSERT_TRUE(WaitUntil([&] { return assigned_ == 2; }));
  call.reset();
  ExpectNothingLeft();
  EXPECT_TRUE(WaitUntil([&] { return broken_ == 1; }));
  ExpectWell();
  End();
}

TEST_F(AttendEndTest, AJobThatWasStartedIsCarriedThroughWhenItsClientGoesAway) {
  absl::Notification started, cancelled, go;
  std::atomic<bool> broken{false};
  ServeWith([&](RankRun& run) {
    if (!run.TakeUpload() || !run.SayReady() || !run.TakeStart()) return EndedEarly();
    started.Notify();
    if (run.TakeCancel()) cancelled.Notify();
    go.WaitForNotification();  // the exchanges
    broken = run.context().IsCancelled();
    return grpc::Status(grpc::StatusCode::ABORTED, "cancelled; every exchange was done");
  });
  auto call = Open();
  ASSERT_TRUE(call->SendAll(MakeRequest(64, 2)));
  started.WaitForNotification();
  call->Break();
  EXPECT_EQ(call->Finish().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(cancelled.WaitForNotificationWithTimeout(absl::FromChrono(kPatience)));
  EXPECT_TRUE(AwaitUnfinished(0, 1));  // what it has reserved stays reserved
  go.Notify();
  ExpectWell();
  EXPECT_FALSE(broken);
  End();
}

TEST_F(AttendEndTest, ADeadlineThatPassesWhileRunningDoesNotBreakTheRanks) {
  absl::Notification cancelled, go;
  std::atomic<bool> broken{false};
  ServeWith([&](RankRun& run) {
    if (!run.TakeUpload() || !run.SayReady() || !run.TakeStart()) return EndedEarly();
    if (run.TakeCancel()) cancelled.Notify();
    go.WaitForNotification();
    broken = run.context().IsCancelled();
    run.SendRows();  // late: nobody wants them
    run.SendDone();
    return grpc::Status::OK;
  });
  const auto call = Open(milliseconds(500 * kSlowness));
  call->SendAll(MakeRequest(64, 2));
  EXPECT_EQ(call->Finish().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(cancelled.WaitForNotificationWithTimeout(absl::FromChrono(kPatience)));
  go.Notify();
  ExpectWell();
  EXPECT_FALSE(broken);
  End();
}

TEST_F(AttendEndTest, AClientThatGoesAwayWhileDownloadingFreesEverything) {
  ServeWith([](RankRun& run) { return EchoAssigned(run); });
  const Request request = MakeRequest(20'000, 2, 128);
  auto call = Open();
  ASSERT_TRUE(call->SendAll(request));
  v1::AttendResponse response;
  while (response.chunks().empty()) ASSERT_TRUE(call->Read(response));
  call.reset();
  ExpectWell();
}

TEST_F(AttendEndTest, AClientThatTakesItsRowsTooSlowlyIsToldSo) {
  AttendOptions options;
  options.minimum_rate = {.bytes_per_second = 1e9, .window = milliseconds(200 * kSlowness)};
  ServeWith([](RankRun& run) { return EchoAssigned(run); }, options);
  const Request request = MakeRequest(10'000, 2, 128);
  const auto call = Open();
  if (call->SendAll(request)) {
    ExpectNothingLeft();  // without a single read
  }
  EXPECT_EQ(call->Finish().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(AttendEndTest, ClientsThatGoAwayAtAnyMomentLeaveNothingBehind) {
  ServeWith([](RankRun& run) { return EchoAssigned(run); });
  const Request request = MakeRequest(2'000, 2, 64);
  std::vector<std::thread> clients;
  std::atomic<int> served{0};
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < 25; ++i) {
        // The last one has all the time it needs.
        const milliseconds deadline(1 + (7 * i + c) % 60 * kSlowness);
        ClientCall call(*stub_, i == 24 ? kPatience : deadline);
        call.SendAll(request);
        if (!call.Collect(request).ok()) continue;
        ++served;
        ExpectRight(request, call);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectWell();
  EXPECT_GE(served, 4);
}

// --- a worker goes wrong

TEST_F(AttendEndTest, AWorkerThatIsLostIsWorthAnotherAttempt) {
  const struct {
    std::string when;
    std::function<grpc::Status(RankRun&)> rank_1;
  } kCases[] = {
      {"at once", [](RankRun&) { return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone"); }},
      {"uploading",
       [](RankRun& run) {
         run.TakeChunks();
         return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
       }},
      {"ready",
       [](RankRun& run) {
         run.TakeUpload() && run.SayReady();
         return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
       }},
      {"running",
       [](RankRun& run) {
         run.TakeUpload() && run.SayReady() && run.TakeStart();
         return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
       }},
      {"downloading",
       [](RankRun& run) {
         run.TakeUpload() && run.SayReady() && run.TakeStart() &&
             run.SendChunk(v1::TENSOR_ID_OUT, 0, "oooo");
         return grpc::Status(grpc::StatusCode::CANCELLED, "gone");
       }},
  };
  std::atomic<int> which{0};
  ServeWith([&](RankRun& run) { return kCases[which].rank_1(run); });
  for (const auto& [when, rank_1] : kCases) {
    SCOPED_TRACE(when);
    const absl::Status status = Result();
    ExpectStatus(status, absl::StatusCode::kUnavailable, "rank 1");
    EXPECT_TRUE(RetryAfter(status).has_value());
    ExpectWell();
    ++which;
  }
  End();
}

TEST_F(AttendEndTest, AWorkerThatBreaksTheProtocolIsABugThatNamesTheRequest) {
  const auto run_to_start = [](RankRun& run) {
    return run.TakeUpload() && run.SayReady() && run.TakeStart();
  };
  const struct {
    std::string words;
    std::function<grpc::Status(RankRun&)> rank_1;
  } kCases[] = {
      {"no such chunk",
       [](RankRun&) { return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no such chunk"); }},
      {"no memory",
       [](RankRun&) { return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "no memory"); }},
      {"before `done`",
       [=](RankRun& run) { return run_to_start(run) ? grpc::Status::OK : EndedEarly(); }},
      {"before `done`",
       [=](RankRun& run) {
         run_to_start(run) && run.SendRows();
         return grpc::Status::OK;
       }},
      {"rows of it are missing",
       [=](RankRun& run) {
         run_to_start(run) && run.SendDone();
         return grpc::Status::OK;
       }},
      {"repeats",
       [=](RankRun& run) {
         run_to_start(run) && run.SendRows() && run.SendChunk(v1::TENSOR_ID_OUT, 0, "oooo");
         return grpc::Status::OK;
       }},
      {"not asked for",
       [=](RankRun& run) {
         run_to_start(run) && run.SendChunk(v1::TENSOR_ID_Q, 0, "qqqq");
         return grpc::Status::OK;
       }},
      {"chunks before `start`",
       [](RankRun& run) {
         run.SendChunk(v1::TENSOR_ID_OUT, 0, "oooo");
         run.TakeUpload();
         return grpc::Status::OK;
       }},
      {"`ready` twice",
       [](RankRun& run) {
         run.TakeUpload() && run.SayReady() && run.SayReady();
         run.TakeStart();
         return grpc::Status::OK;
       }},
      {"neither ready, chunks nor done",
       [](RankRun& run) {
         run.SendDone();
         run.TakeUpload();
         return grpc::Status::OK;
       }},
      {"after `done`",
       [=](RankRun& run) {
         run_to_start(run) && run.SendRows() && run.SendDone() && run.SendDone();
         return grpc::Status::OK;
       }},
  };
  std::atomic<int> which{0};
  ServeWith([&](RankRun& run) { return kCases[which].rank_1(run); });
  for (const auto& [words, rank_1] : kCases) {
    SCOPED_TRACE(words);
    const absl::Status status = Result();
    ExpectStatus(status, absl::StatusCode::kInternal, words);
    EXPECT_THAT(std::string(status.message()), HasSubstr("test-request"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
    EXPECT_FALSE(RetryAfter(status).has_value());
    ExpectWell();
    ++which;
  }
  End();
}

TEST_F(AttendEndTest, WhenARankFailsTheOthersThatWereStartedAreCancelledAndAwaited) {
  absl::Notification go;
  Serve();
  std::atomic<int> cancelled{0};
  for (int i = 0; i < 3; ++i) {
    AddWorker([&](RankRun& run) {
      if (!run.TakeJob()) return EndedEarly();
      if (run.assignment().rank() == 1) {
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the epoch ended");
      }
      if (run.TakeCancel()) ++cancelled;
      go.WaitForNotification();
      return grpc::Status(grpc::StatusCode::ABORTED, "cancelled");
    });
  }
  ExpectStatus(Result(MakeRequest(64, 3)), absl::StatusCode::kUnavailable, "rank 1");
  EXPECT_TRUE(WaitUntil([&] { return cancelled == 2; }));
  EXPECT_TRUE(AwaitUnfinished(0, 1));
  go.Notify();
  ExpectNothingLeft();
  End();
}

TEST_F(AttendEndTest, AWorkerThatHangsAndIsDeclaredLostIsNotWaitedFor) {
  for (const bool started : {false, true}) {
    SCOPED_TRACE(started ? "running" : "uploading");
    absl::Notification hangs, go;
    Serve();
    const auto script = [&](RankRun& run) {
      if (!run.TakeAssignment()) return EndedEarly();
      if (started && !(run.TakeUpload() && run.SayReady() && run.TakeStart())) return EndedEarly();
      if (run.assignment().rank() == 1) {
        hangs.Notify();
        go.WaitForNotification();
      } else {
        run.TakeCancel();
      }
      return grpc::Status(grpc::StatusCode::ABORTED, "cancelled");
    };
    for (int i = 0; i < 2; ++i) AddWorker(script);
    const auto call = Open();
    ASSERT_TRUE(call->SendHeader(MakeRequest(64, 2).header));
    if (started) {
      ASSERT_TRUE(call->SendTensors(MakeRequest(64, 2)) && call->HalfClose());
    }
    hangs.WaitForNotification();
    for (const auto& worker : workers_) worker->Leave();  // whichever it is
    const absl::Status status = call->Finish();
    ExpectStatus(status, absl::StatusCode::kUnavailable, "");
    EXPECT_TRUE(RetryAfter(status).has_value());
    ExpectNothingLeft();  // before it moves again
    go.Notify();
    End();
  }
}

TEST_F(AttendEndTest, AWorkerThatIsNotThereAnyMoreIsUnavailable) {
  Serve();
  AddWorker().StopServing();
  const absl::Status status = Result(MakeRequest(10, 1));
  ExpectStatus(status, absl::StatusCode::kUnavailable, "rank 0");
  EXPECT_TRUE(RetryAfter(status).has_value());
}

// A call whose connection breaks, and says nothing of the worker.
grpc::Status Break(RankRun& run) {
  run.context().TryCancel();
  return EndedEarly();
}

TEST_F(AttendEndTest, AfterABrokenConnectionMemoryIsFreeWhenTheWorkerSaysSo) {
  for (const bool started : {false, true}) {
    SCOPED_TRACE(started ? "running" : "uploading");
    std::atomic<bool> breaks{true};
    Serve();
    FakeShard& worker = AddWorker(
        [&](RankRun& run) {
          if (!breaks.exchange(false)) return Echo(run);
          return (started ? run.TakeJob() : run.TakeAssignment()) ? Break(run) : EndedEarly();
        },
        1 << 20);
    worker.OnRecall(Recall::kHolds);
    const Request request = MakeRequest(3'000);  // more than half of the memory
    ExpectStatus(Result(request), absl::StatusCode::kUnavailable, "rank 0");
    ASSERT_TRUE(WaitUntil([&] { return worker.recalled() != 0; }));
    EXPECT_TRUE(AwaitUnfinished(0, 1));
    EXPECT_EQ(coordinator_->Describe().workers(0).job() != 0, started) << "is it idle?";
    const auto next = Open();
    ASSERT_TRUE(next->SendHeader(request.header));
    ASSERT_TRUE(AwaitUnfinished(1, 1)) << "the next one got in";
    worker.Release(worker.recalled());
    ASSERT_TRUE(next->SendTensors(request) && next->HalfClose());
    const absl::Status status = next->Collect(request);
    EXPECT_TRUE(status.ok()) << status;
    End();
  }
}

TEST_F(AttendEndTest, AfterABrokenConnectionALostWorkerIsNotWaitedFor) {
  Serve();
  FakeShard& worker =
      AddWorker([](RankRun& run) { return run.TakeJob() ? Break(run) : EndedEarly(); });
  worker.OnRecall(Recall::kIsSilent);
  ExpectStatus(Result(MakeRequest()), absl::StatusCode::kUnavailable, "rank 0");
  ASSERT_TRUE(WaitUntil([&] { return worker.recalled() != 0; }));
  EXPECT_TRUE(AwaitUnfinished(0, 1));
  worker.Leave();
  ExpectNothingLeft();
}

TEST_F(AttendEndTest, AClientThatGoesAwayWhileUploadingFreesMemoryWhenTheWorkerSaysSo) {
  Serve();
  FakeShard& worker = AddWorker([&](RankRun& run) {
    assigned_ += run.TakeAssignment();
    return EchoAssigned(run);
  });
  worker.OnRecall(Recall::kHolds);
  auto call = Open();
  ASSERT_TRUE(call->SendHeader(MakeRequest().header) && call->AwaitAccepted());
  ASSERT_TRUE(WaitUntil([&] { return assigned_ == 1; }));
  call.reset();
  ASSERT_TRUE(WaitUntil([&] { return worker.recalled() != 0; }));
  EXPECT_TRUE(AwaitUnfinished(0, 1));
  worker.Release(worker.recalled());
  ExpectNothingLeft();
}

// --- the service ends

TEST_F(AttendEndTest, DrainingRefusesNewCallsAndFinishesWhatRuns) {
  absl::Notification started, go;
  ServeWith([&](RankRun& run) {
    if (!run.TakeUpload() || !run.SayReady() || !run.TakeStart()) return EndedEarly();
    started.Notify();
    go.WaitForNotification();
    run.SendRows();
    run.SendDone();
    return grpc::Status::OK;
  });
  const Request request = MakeRequest(64, 2);
  const auto running = Open(), silent = Open();
  ASSERT_TRUE(running->SendAll(request));
  started.WaitForNotification();
  coordinator_->Drain();
  calls_->Drain(absl::UnavailableError("draining"));
  ExpectStatus(silent->Finish(), absl::StatusCode::kUnavailable, "draining");
  ExpectStatus(Result(), absl::StatusCode::kUnavailable, "draining");
  EXPECT_FALSE(calls_->AwaitNone(milliseconds(1)));
  go.Notify();
  EXPECT_TRUE(running->Collect(request).ok());
  ExpectRight(request, *running);
  End();
}

TEST_F(AttendEndTest, AbortingEndsEveryCallWithoutWaitingForAnyRank) {
  absl::Notification started, go;
  ServeWith([&](RankRun& run) {
    if (!run.TakeUpload() || !run.SayReady() || !run.TakeStart()) return EndedEarly();
    started.Notify();
    go.WaitForNotification();
    return EndedEarly();
  });
  const auto running = Open(), silent = Open();
  ASSERT_TRUE(running->SendAll(MakeRequest(64, 2)));
  started.WaitForNotification();
  calls_->AbortAll(absl::UnavailableError("the server shuts down"));
  ExpectStatus(running->Finish(), absl::StatusCode::kUnavailable, "shuts down");
  ExpectStatus(silent->Finish(), absl::StatusCode::kUnavailable, "shuts down");
  ExpectNothingLeft();
  go.Notify();
  End();
}

TEST_F(AttendEndTest, AbortingWaitsForNoWorkersWordEither) {
  Serve();
  FakeShard& worker =
      AddWorker([](RankRun& run) { return run.TakeJob() ? Break(run) : EndedEarly(); });
  worker.OnRecall(Recall::kIsSilent);
  ExpectStatus(Result(MakeRequest()), absl::StatusCode::kUnavailable, "rank 0");
  EXPECT_TRUE(AwaitUnfinished(0, 1));
  calls_->AbortAll(absl::UnavailableError("the server shuts down"));
  ExpectNothingLeft();
}

TEST_F(AttendEndTest, AFullQueueSaysWhenToComeBack) {
  absl::Notification go;
  CoordinatorOptions coordinator;
  coordinator.max_queued_jobs = 1;
  Serve({}, coordinator);
  AddWorker(
      [&](RankRun& run) {
        go.WaitForNotification();
        return Echo(run);
      },
      1 << 20);
  const Request request = MakeRequest(3'000);
  const auto running = Open(), queued = Open(), refused = Open();
  ASSERT_TRUE(running->SendHeader(request.header) && running->AwaitAccepted());
  ASSERT_TRUE(queued->SendHeader(request.header));
  ASSERT_TRUE(AwaitUnfinished(1, 1));
  refused->SendHeader(request.header);
  const absl::Status status = refused->Finish();
  ExpectStatus(status, absl::StatusCode::kResourceExhausted, "1");
  EXPECT_TRUE(RetryAfter(status).has_value());
  go.Notify();
  for (const auto& call : {running.get(), queued.get()}) {
    ASSERT_TRUE(call->SendTensors(request) && call->HalfClose());
    EXPECT_TRUE(call->Collect(request).ok());
  }
  End();
}

TEST_F(AttendEndTest, AThousandSilentConnectionsDoNotStandInAnyonesWay) {
  RaiseFileLimit();
  constexpr int kConnections = 1'000 / kSlowness;
  Serve();
  AddWorker();
  std::vector<std::unique_ptr<v1::Attention::Stub>> stubs;
  std::vector<std::unique_ptr<ClientCall>> calls;
  for (int i = 0; i < kConnections; ++i) {
    stubs.push_back(NewStub());
    calls.push_back(std::make_unique<ClientCall>(*stubs.back()));
    if (i % 25 == 0) {  // fewer than may be admitted
      ASSERT_TRUE(calls.back()->SendHeader(MakeRequest().header));
    }
  }
  for (int i = 0; i < 5; ++i) ExpectServed(MakeRequest(1'000));
  calls.clear();
}

}  // namespace
}  // namespace ringserve
