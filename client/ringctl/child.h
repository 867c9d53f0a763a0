// A server or worker process that `ringctl up` starts: it dies with the thread that started it, and
// what it prints on stdout is read line by line. Its stderr is ours.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ringserve {

class Child {
 public:
  // Starts `program` with --die-with-parent and `arguments`: the kernel kills it when the calling
  // thread ends. It gets a process group of its own, so that a Ctrl-C at the terminal reaches us
  // alone. INTERNAL: the system refused.
  static absl::StatusOr<Child> Start(const std::string& program,
                                     const std::vector<std::string>& arguments);

  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) noexcept;
  ~Child();  // kills and reaps it

  pid_t pid() const { return pid_; }

  // Readable when ReadLines has something to read; -1 once its stdout is closed.
  int out() const { return out_; }

  // The lines that it has printed since the last call; never blocks.
  std::vector<std::string> ReadLines();

  void Signal(int signal) const;

  // How it ended, in words ("exited with status 2"), once it has; never blocks.
  std::optional<std::string> Ended();

  // After Ended: by itself, not by a signal.
  bool exited() const { return exited_; }

 private:
  Child(pid_t pid, int out) : pid_(pid), out_(out) {}
  void Release();

  pid_t pid_;  // 0: reaped
  int out_;
  std::string partial_line_;
  bool exited_ = false;
};

// The path of a program of ringserve: beside this program, else on PATH. NOT_FOUND: neither.
absl::StatusOr<std::string> FindProgram(const std::string& name);

}  // namespace ringserve
