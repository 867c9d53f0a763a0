#include "client/ringctl/local_cluster.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kSlowStart{10'000};
constexpr milliseconds kIdleWait{60'000};
// `timeout` and some supervisors send their signal twice: only a later one asks for haste.
constexpr milliseconds kEcho{500};
constexpr absl::string_view kListening = "listening ";

// The signals that the loop reads; blocked before any thread is started.
int BlockedSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

void Print(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

void Say(const std::string& line) { std::fprintf(stderr, "ringctl up: %s\n", line.c_str()); }

// A listener that was killed leaves its unix socket behind.
void RemoveSocket(const std::string& address) {
  constexpr absl::string_view kUnix = "unix:";
  if (!absl::StartsWith(address, kUnix)) return;
  const std::string path = address.substr(kUnix.size());
  struct stat entry;
  if (lstat(path.c_str(), &entry) == 0 && S_ISSOCK(entry.st_mode)) unlink(path.c_str());
}

}  // namespace

std::string ReachableAddress(const std::string& address) {
  for (const auto& [anywhere, here] :
       {std::pair<absl::string_view, absl::string_view>{"0.0.0.0:", "127.0.0.1:"},
        {"[::]:", "[::1]:"}}) {
    if (absl::StartsWith(address, anywhere)) {
      return absl::StrCat(here, address.substr(anywhere.size()));
    }
  }
  return address;
}

LocalCluster::LocalCluster(LocalClusterOptions options)
    : options_(std::move(options)),
      signals_(BlockedSignals()),
      input_(options_.until_eof ? STDIN_FILENO : -1) {
  members_.resize(1 + options_.workers);
  members_[0].role = "coordinator";
  members_[0].start_at = Clock::now();
  for (int i = 0; i < options_.workers; ++i) members_[1 + i].role = absl::StrCat("worker ", i);
}

LocalCluster::~LocalCluster() {
  members_.clear();
  watch_.reset();
  RemoveSocket(address_);
  close(signals_);
}

std::vector<std::string> LocalCluster::Arguments(const Member& member) const {
  std::vector<std::string> arguments;
  if (is_coordinator(member)) {
    // Restarted, it must be found where it was.
    arguments = {"--listen", address_.empty() ? options_.listen : address_};
    if (options_.insecure) arguments.push_back("--insecure");
  } else {
    arguments = {"--listen",      "127.0.0.1:0",
                 "--coordinator", ReachableAddress(address_),
                 "--threads",     absl::StrCat(options_.threads)};
    AppendDevice(member, arguments);
    if (options_.memory_bytes > 0) {
      arguments.insert(arguments.end(), {"--memory-bytes", absl::StrCat(options_.memory_bytes)});
    }
  }
  for (const auto& [flag, value] :
       {std::pair<const char*, const std::string&>{"--tls-cert", options_.tls.cert},
        {"--tls-key", options_.tls.key},
        {"--tls-ca", options_.tls.ca},
        {"--log-level", options_.log_level}}) {
    if (!value.empty()) arguments.insert(arguments.end(), {flag, value});
  }
  return arguments;
}

void LocalCluster::AppendDevice(const Member& member, std::vector<std::string>& arguments) const {
  if (options_.devices.empty()) return;
  const size_t worker = &member - &members_[1];
  arguments.insert(arguments.end(),
                   {"--device", options_.devices[worker % options_.devices.size()]});
}

absl::Status LocalCluster::Run() {
  slow_at_ = Clock::now() + kSlowStart;
  for (;;) {
    absl::Status status = StartDue();
    if (!status.ok()) return status;
    Wait(kIdleWait);
    if (AskedToEnd()) break;
    for (Member& member : members_) {
      if (!member.child.has_value()) continue;
      for (const std::string& line : member.child->ReadLines()) {
        if (!absl::StartsWith(line, kListening)) {
          Say(absl::StrCat(member.role, ": ", line));
        } else if (is_coordinator(member)) {
          status = Listening(line.substr(kListening.size()));
          if (!status.ok()) return status;
        }
      }
    }
    status = Reap();
    if (!status.ok()) return status;
    TellIfReady();
    TellIfSlow();
  }
  Stop();
  return absl::OkStatus();
}

// Starts every member whose time has come. All start from this thread: it outlives them.
absl::Status LocalCluster::StartDue() {
  bool started = false;
  for (Member& member : members_) {
    if (!member.start_at.has_value() || *member.start_at > Clock::now()) continue;
    member.start_at.reset();
    absl::StatusOr<Child> child =
        Child::Start(is_coordinator(member) ? options_.server_program : options_.worker_program,
                     Arguments(member));
    if (!child.ok()) return child.status();
    member.child = *std::move(child);
    Print(absl::StrCat(member.role, " pid ", member.child->pid()));
    started = true;
  }
  if (started && watch_ != nullptr) ExpectAll();
  return absl::OkStatus();
}

void LocalCluster::ExpectAll() {
  std::set<int64_t> pids;
  for (const Member& member : members_) {
    if (is_coordinator(member)) continue;
    if (!member.child.has_value()) return;  // until it has been started again
    pids.insert(member.child->pid());
  }
  watch_->Expect(std::move(pids));
}

absl::Status LocalCluster::Listening(const std::string& address) {
  if (!address_.empty()) return absl::OkStatus();  // started again, at the same address
  address_ = address;
  absl::StatusOr<std::unique_ptr<Client>> client =
      Client::Connect({.server = ReachableAddress(address_),
                       .tls_cert = options_.tls.cert,
                       .tls_key = options_.tls.key,
                       .tls_ca = options_.tls.ca});
  if (!client.ok()) return client.status();
  watch_ = std::make_unique<JoinWatch>(*std::move(client));
  for (Member& member : members_) {
    if (!is_coordinator(member)) member.start_at = Clock::now();
  }
  return absl::OkStatus();
}

absl::Status LocalCluster::Reap() {
  for (Member& member : members_) {
    if (!member.child.has_value()) continue;
    const pid_t pid = member.child->pid();
    const std::optional<std::string> how = member.child->Ended();
    if (!how.has_value()) continue;
    // One that ends by itself while all is new would end by itself again.
    if (!ready_ && member.child->exited()) {
      return absl::FailedPreconditionError(
          absl::StrCat(member.role, " (pid ", pid, ") ", *how, " before the cluster was ready"));
    }
    Say(absl::StrCat(member.role, " (pid ", pid, ") ", *how, "; starting it again in ",
                     options_.restart_delay.count(), " ms"));
    member.child.reset();
    member.start_at = Clock::now() + options_.restart_delay;
  }
  return absl::OkStatus();
}

void LocalCluster::TellIfReady() {
  if (watch_ == nullptr || !watch_->TakeAllJoined()) return;
  if (!ready_) {
    Print(absl::StrCat("ready ", ReachableAddress(address_)));
  } else {
    Say("all workers have joined again");
  }
  ready_ = true;
}

void LocalCluster::TellIfSlow() {
  if (ready_ || !slow_at_.has_value() || Clock::now() < *slow_at_) return;
  slow_at_.reset();
  if (address_.empty()) {
    Say("still waiting: the coordinator does not listen yet");
  } else {
    Say(absl::StrCat("still waiting: ", watch_->joined(), " of ", options_.workers,
                     " workers have joined the coordinator at ", address_));
  }
}

// Returns when there may be something to do.
void LocalCluster::Wait(milliseconds at_most) {
  Clock::time_point until = Clock::now() + at_most;
  if (!ready_ && slow_at_.has_value()) until = std::min(until, *slow_at_);
  std::vector<pollfd> events = {{.fd = signals_, .events = POLLIN}};
  if (watch_ != nullptr) events.push_back({.fd = watch_->fd(), .events = POLLIN});
  if (input_ >= 0) events.push_back({.fd = input_, .events = POLLIN});
  for (const Member& member : members_) {
    if (member.start_at.has_value()) until = std::min(until, *member.start_at);
    if (member.child.has_value() && member.child->out() >= 0) {
      events.push_back({.fd = member.child->out(), .events = POLLIN});
    }
  }
  const auto left = std::chrono::ceil<milliseconds>(until - Clock::now());
  poll(events.data(), events.size(), static_cast<int>(std::max(left, milliseconds(0)).count()));
}

bool LocalCluster::AskedToEnd() {
  signalfd_siginfo signal;
  bool asked = false;
  while (read(signals_, &signal, sizeof(signal)) == sizeof(signal)) {
    asked = asked || signal.ssi_signo != SIGCHLD;
  }
  return InputEnded() || asked;
}

bool LocalCluster::InputEnded() {
  pollfd input = {.fd = input_, .events = POLLIN};
  if (input_ < 0 || poll(&input, 1, 0) <= 0) return false;
  char ignored[256];
  if (read(input_, ignored, sizeof(ignored)) > 0) return false;
  input_ = -1;
  return true;
}

// The coordinator first: it drains, and a worker that went before it would fail what still runs.
void LocalCluster::Stop() {
  const auto tell = [&](size_t first, size_t end) {
    for (size_t i = first; i < end; ++i) {
      if (members_[i].child.has_value()) members_[i].child->Signal(SIGTERM);
    }
    return AwaitEnd(first, end, options_.grace);
  };
  if (tell(0, 1) && tell(1, members_.size())) return;
  for (Member& member : members_) {
    if (!member.child.has_value()) continue;
    Say(absl::StrCat(member.role, " (pid ", member.child->pid(), ") does not end: killed"));
    member.child.reset();
  }
}

// True when all of them have ended; false when `timeout` passed first, or a further signal asks for
// haste.
bool LocalCluster::AwaitEnd(size_t first, size_t end, milliseconds timeout) {
  const Clock::time_point begin = Clock::now();
  const Clock::time_point deadline = begin + timeout;
  for (;;) {
    bool running = false;
    for (size_t i = first; i < end; ++i) {
      Member& member = members_[i];
      if (member.child.has_value() && member.child->Ended().has_value()) member.child.reset();
      running = running || member.child.has_value();
    }
    if (!running) return true;
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    if (left <= milliseconds(0)) return false;
    pollfd signals = {.fd = signals_, .events = POLLIN};
    poll(&signals, 1, static_cast<int>(left.count()));
    if (AskedToEnd() && Clock::now() > begin + kEcho) return false;
  }
}

}  // namespace ringserve
