#include "client/ringctl/child.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/process.h"

extern char** environ;

namespace ringserve {
namespace {

// Our environment, with what a child must know instead of what our own parent told us.
std::vector<std::string> ChildEnvironment() {
  std::vector<std::string> all = {absl::StrCat(kParentPidVariable, "=", getpid())};
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (!absl::StartsWith(*entry, absl::StrCat(kParentPidVariable, "="))) all.emplace_back(*entry);
  }
  return all;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Both ends, none of which a child inherits; closed unless taken.
struct Pipe {
  ~Pipe() {
    for (const int end : {read, write}) {
      if (end >= 0) close(end);
    }
  }
  bool Open() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return false;
    read = ends[0];
    write = ends[1];
    return true;
  }

  int read = -1, write = -1;
};

}  // namespace

absl::StatusOr<Child> Child::Start(const std::string& program,
                                   const std::vector<std::string>& arguments, Bond bond, int log) {
  std::vector<std::string> argv = {program};
  if (bond == Bond::kDieWithParent) argv.emplace_back("--die-with-parent");
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  std::vector<std::string> env = ChildEnvironment();
  Pipe in, out;
  if (!out.Open() || (bond == Bond::kStandardInput && !in.Open())) {
    return absl::InternalError(absl::StrCat("pipe: ", std::strerror(errno)));
  }
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  if (bond == Bond::kStandardInput) {
    posix_spawn_file_actions_adddup2(&files, in.read, STDIN_FILENO);
  } else {
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  }
  posix_spawn_file_actions_adddup2(&files, out.write, STDOUT_FILENO);
  if (log >= 0) posix_spawn_file_actions_adddup2(&files, log, STDERR_FILENO);
  // Signals that we block or ignore are no business of the child's.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);

  pid_t pid = 0;
  const int failed = posix_spawn(&pid, program.c_str(), &files, &attributes, Pointers(argv).data(),
                                 Pointers(env).data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  if (failed != 0) {
    return absl::InternalError(absl::StrCat("cannot start ", program, ": ", std::strerror(failed)));
  }
  fcntl(out.read, F_SETFL, O_NONBLOCK);
  return Child(pid, std::exchange(in.write, -1), std::exchange(out.read, -1));
}

Child::Child(Child&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)),
      in_(std::exchange(other.in_, -1)),
      out_(std::exchange(other.out_, -1)),
      partial_line_(std::move(other.partial_line_)),
      exited_(other.exited_) {}

Child& Child::operator=(Child&& other) noexcept {
  if (this == &other) return *this;
  Release();
  pid_ = std::exchange(other.pid_, 0);
  in_ = std::exchange(other.in_, -1);
  out_ = std::exchange(other.out_, -1);
  partial_line_ = std::move(other.partial_line_);
  exited_ = other.exited_;
  return *this;
}

Child::~Child() { Release(); }

void Child::Release() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
    pid_ = 0;
  }
  for (int* end : {&in_, &out_}) {
    if (*end >= 0) close(std::exchange(*end, -1));
  }
}

std::vector<std::string> Child::ReadLines() {
  std::vector<std::string> lines;
  char bytes[4096];
  while (out_ >= 0) {
    const ssize_t count = read(out_, bytes, sizeof(bytes));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) break;
    if (count <= 0) {
      close(std::exchange(out_, -1));
      break;
    }
    partial_line_.append(bytes, static_cast<size_t>(count));
  }
  size_t end;
  while ((end = partial_line_.find('\n')) != std::string::npos) {
    lines.push_back(partial_line_.substr(0, end));
    partial_line_.erase(0, end + 1);
  }
  return lines;
}

void Child::Signal(int signal) const {
  if (pid_ > 0) kill(pid_, signal);
}

std::optional<std::string> Child::Ended() {
  int status = 0;
  if (pid_ <= 0 || waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  pid_ = 0;
  exited_ = WIFEXITED(status);
  if (exited_) return absl::StrCat("exited with status ", WEXITSTATUS(status));
  const int signal = WTERMSIG(status);
  return absl::StrCat("was killed by signal ", signal, " (", strsignal(signal), ")");
}

absl::StatusOr<std::string> FindProgram(const std::string& name) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::vector<std::string> folders = {fs::read_symlink("/proc/self/exe", error).parent_path()};
  if (const char* path = std::getenv("PATH"); path != nullptr) {
    for (const auto folder : absl::StrSplit(path, ':')) folders.emplace_back(folder);
  }
  for (const std::string& folder : folders) {
    if (folder.empty()) continue;
    const std::string program = absl::StrCat(folder, "/", name);
    if (fs::is_regular_file(program, error) && access(program.c_str(), X_OK) == 0) return program;
  }
  return absl::NotFoundError(
      absl::StrCat(name, " is neither beside this program (", folders[0], ") nor on PATH"));
}

}  // namespace ringserve
