// A process of ringserve that ringctl starts; what it prints on stdout is read line by line.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ringserve {

// How a child learns that we are gone.
enum class Bond {
  kDieWithParent,  // --die-with-parent: the kernel kills it when the thread that started it ends
  kStandardInput,  // its standard input, a pipe, ends with us; else that is empty
};

class Child {
 public:
  // Starts `program` with `arguments`, and --die-with-parent before them where that is the bond. It
  // gets a process group of its own, so that a Ctrl-C at the terminal reaches us alone. Its stderr
  // is `log`, a file descriptor; below 0: ours. INTERNAL: the system refused.
  static absl::StatusOr<Child> Start(const std::string& program,
                                     const std::vector<std::string>& arguments,
                                     Bond bond = Bond::kDieWithParent, int log = -1);

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
  Child(pid_t pid, int in, int out) : pid_(pid), in_(in), out_(out) {}
  void Release();

  pid_t pid_;  // 0: reaped
  int in_;     // whose end is that of its standard input; -1: none
  int out_;
  std::string partial_line_;
  bool exited_ = false;
};

// The path of a program of ringserve: beside this program, else on PATH. NOT_FOUND: neither.
absl::StatusOr<std::string> FindProgram(const std::string& name);

}  // namespace ringserve
