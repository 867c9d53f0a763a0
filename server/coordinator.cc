#include "server/coordinator.h"

#include <atomic>
#include <utility>

#include "server/coordinator_loop.h"

namespace ringserve {
namespace {

// Shared by all coordinators of a process: unique within each.
uint64_t NextId() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

Coordinator::Coordinator(CoordinatorOptions options, std::function<Clock::time_point()> now)
    : loop_(std::make_unique<Loop>(std::move(options), std::move(now))) {}

Coordinator::~Coordinator() = default;

Coordinator::JobId Coordinator::Submit(v1::AttendHeader header,
                                       std::shared_ptr<JobListener> listener, bool backward) {
  const JobId id = NextId();
  loop_->CountJob();
  loop_->Post(
      [loop = loop_.get(), id, header = std::move(header), listener = std::move(listener),
       backward]() mutable { loop->Submit(id, std::move(header), std::move(listener), backward); });
  return id;
}

void Coordinator::InputComplete(JobId job) {
  loop_->Post([loop = loop_.get(), job] { loop->InputComplete(job); });
}

void Coordinator::RankIdle(JobId job, int rank) {
  loop_->Post([loop = loop_.get(), job, rank] { loop->RankIdle(job, rank); });
}

void Coordinator::RankAstray(JobId job, int rank, bool suspect) {
  loop_->Post([loop = loop_.get(), job, rank, suspect] { loop->RankAstray(job, rank, suspect); });
}

void Coordinator::End(JobId job, const absl::Status& outcome) {
  loop_->Post([loop = loop_.get(), job, outcome] { loop->End(job, outcome); });
}

Coordinator::MemberId Coordinator::Join(v1::Hello hello, std::shared_ptr<MemberListener> listener) {
  const MemberId id = NextId();
  loop_->Post(
      [loop = loop_.get(), id, hello = std::move(hello), listener = std::move(listener)]() mutable {
        loop->Join(id, hello, std::move(listener));
      });
  return id;
}

void Coordinator::Receive(MemberId member, v1::WorkerMessage message) {
  loop_->Post([loop = loop_.get(), member, message = std::move(message)] {
    loop->Receive(member, message);
  });
}

void Coordinator::Leave(MemberId member) {
  loop_->Post([loop = loop_.get(), member] { loop->Leave(member); });
}

void Coordinator::Drain() {
  loop_->Post([loop = loop_.get()] { loop->Drain(); });
}

bool Coordinator::AwaitIdle(std::chrono::milliseconds timeout) { return loop_->AwaitIdle(timeout); }

v1::GetClusterResponse Coordinator::Describe() const { return loop_->Describe(); }

Coordinator::Totals Coordinator::totals() const { return loop_->totals(); }

Group Coordinator::group() const { return loop_->group(); }

void Coordinator::OnServing(std::function<void(bool serving)> listener) {
  loop_->Post([loop = loop_.get(), listener = std::move(listener)]() mutable {
    loop->OnServing(std::move(listener));
  });
}

const v1::Measurements& Coordinator::measurements() const { return loop_->options().measurements; }

}  // namespace ringserve
