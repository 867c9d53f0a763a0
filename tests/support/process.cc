#include "tests/support/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <fstream>
#include <utility>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

extern char** environ;

namespace ringserve::test {
namespace {

constexpr absl::Duration kLastWords = absl::Seconds(2);

// Third field of /proc/PID/stat, after the name in parentheses: R, S, T, Z ...; 0: no such process.
char StateOf(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');
  return name_end == std::string::npos ? '\0' : line[name_end + 2];
}

// The environment of a child, as posix_spawn takes it.
std::vector<std::string> EnvironmentWith(const std::map<std::string, std::string>& more) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string name(*entry, strcspn(*entry, "="));
    // The tester's own settings must not reach the processes under test.
    if (more.count(name) == 0 && !absl::StartsWith(name, "RINGSERVE_")) all.emplace_back(*entry);
  }
  for (const auto& [name, value] : more) all.push_back(absl::StrCat(name, "=", value));
  return all;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

std::string Binary(const std::string& name) { return RINGSERVE_BINARIES "/" + name; }

Process::Process(std::string name, pid_t pid, int out, int err)
    : name_(std::move(name)), pid_(pid), reader_([this, out, err] { Read(out, err); }) {}

Process::~Process() {
  if (!exit_.has_value()) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  reader_.join();
  const std::string log = this->log();
  for (const char* finding : {"Sanitizer: ", "runtime error: "}) {
    const size_t at = log.find(finding);
    if (at == std::string::npos) continue;
    ADD_FAILURE() << name_ << ": " << log.substr(log.rfind('\n', at) + 1, 8'000);
  }
}

void Process::Signal(int signal) const {
  if (!exit_.has_value()) kill(pid_, signal);
}

void Process::Kill() const { Signal(SIGKILL); }

void Process::Stop() const {
  Signal(SIGSTOP);
  WaitUntil([&] { return StateOf(pid_) == 'T'; });
}

void Process::Continue() const { Signal(SIGCONT); }

std::string Process::output() const {
  absl::MutexLock lock(&mu_);
  return output_;
}

std::string Process::log() const {
  absl::MutexLock lock(&mu_);
  return log_;
}

std::optional<std::string> Process::WaitForLog(const std::string& text, size_t from,
                                               std::chrono::milliseconds timeout) const {
  return WaitForLogLine({text}, from, timeout);
}

std::optional<std::string> Process::WaitForLogLine(const std::vector<std::string>& words,
                                                   size_t from,
                                                   std::chrono::milliseconds timeout) const {
  absl::MutexLock lock(&mu_);
  return WaitForLine(words, log_, from, timeout);
}

std::optional<std::string> Process::WaitForAddress(std::chrono::milliseconds timeout) const {
  static const std::string kWord = "listening ";
  absl::MutexLock lock(&mu_);
  const std::optional<std::string> line = WaitForLine({kWord}, output_, 0, timeout);
  if (!line.has_value() || !absl::StartsWith(*line, kWord)) return std::nullopt;
  return line->substr(kWord.size());
}

std::optional<std::string> Process::WaitForLine(const std::vector<std::string>& words,
                                                const std::string& in, size_t from,
                                                std::chrono::milliseconds timeout) const {
  const absl::Time deadline = absl::Now() + absl::FromChrono(timeout);
  for (;;) {
    for (size_t end; (end = in.find('\n', from)) != std::string::npos; from = end + 1) {
      const std::string line = in.substr(from, end - from);
      const auto found = [&](const std::string& word) { return absl::StrContains(line, word); };
      if (std::all_of(words.begin(), words.end(), found)) return line;
    }
    if (closed_) return std::nullopt;
    const size_t seen = in.size();
    const auto more = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return closed_ || in.size() > seen; };
    if (!mu_.AwaitWithDeadline(absl::Condition(&more), deadline)) return std::nullopt;
  }
}

std::optional<int> Process::WaitForExit(std::chrono::milliseconds timeout) {
  WaitUntil(
      [&] {
        int status = 0;
        if (exit_.has_value()) return true;
        if (waitpid(pid_, &status, WNOHANG) != pid_) return false;
        exit_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        return true;
      },
      timeout);
  // Its last words may still be on their way; a process of its own may hold the pipe open, though.
  absl::MutexLock lock(&mu_);
  if (exit_.has_value()) mu_.AwaitWithTimeout(absl::Condition(&closed_), kLastWords);
  return exit_;
}

bool Process::running() const {
  const char state = StateOf(pid_);
  return !exit_.has_value() && state != '\0' && state != 'Z';
}

void Process::Read(int out, int err) {
  pollfd ends[] = {{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
  std::vector<char> bytes(1 << 16);
  while (ends[0].fd >= 0 || ends[1].fd >= 0) {
    if (poll(ends, 2, -1) < 0) continue;
    for (pollfd& end : ends) {
      if (end.fd < 0 || end.revents == 0) continue;
      const ssize_t count = read(end.fd, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        close(end.fd);
        end.fd = -1;
        continue;
      }
      absl::MutexLock lock(&mu_);
      (&end == ends ? output_ : log_).append(bytes.data(), static_cast<size_t>(count));
    }
  }
  absl::MutexLock lock(&mu_);
  closed_ = true;
}

Spawner::Spawner() : thread_([this] { Loop(); }) {}

Spawner::~Spawner() {
  {
    absl::MutexLock lock(&mu_);
    ending_ = true;
  }
  thread_.join();
}

std::unique_ptr<Process> Spawner::Start(const std::string& binary,
                                        const std::vector<std::string>& arguments,
                                        const std::map<std::string, std::string>& environment) {
  std::vector<std::string> argv = {binary};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  std::vector<std::string> env = EnvironmentWith(environment);
  int out[2], err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) std::abort();
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&files, out[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&files, err[1], STDERR_FILENO);

  pid_t pid = -1;
  int failed = 0;
  bool done = false;
  absl::MutexLock lock(&mu_);
  const auto free = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return errand_ == nullptr; };
  mu_.Await(absl::Condition(&free));
  errand_ = [&] {
    failed = posix_spawn(&pid, binary.c_str(), &files, nullptr, Pointers(argv).data(),
                         Pointers(env).data());
    done = true;
  };
  mu_.Await(absl::Condition(&done));
  posix_spawn_file_actions_destroy(&files);
  close(out[1]);
  close(err[1]);
  if (failed != 0) {
    std::fprintf(stderr, "cannot start %s: %s\n", binary.c_str(), std::strerror(failed));
    std::abort();
  }
  return std::unique_ptr<Process>(
      new Process(binary.substr(binary.rfind('/') + 1), pid, out[0], err[0]));
}

void Spawner::Loop() {
  const auto due = [this]()
                       ABSL_SHARED_LOCKS_REQUIRED(mu_) { return ending_ || errand_ != nullptr; };
  absl::MutexLock lock(&mu_);
  for (;;) {
    mu_.Await(absl::Condition(&due));
    if (errand_ == nullptr) return;
    std::exchange(errand_, nullptr)();
  }
}

}  // namespace ringserve::test
