// Real processes under test: started, watched, stopped, killed. A process ends with the Spawner
// that started it, however the test ends.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "tests/support/wait.h"

namespace ringserve::test {

// The path of a program of this build.
std::string Binary(const std::string& name);

class Process {
 public:
  // Kills it. What a sanitizer found in it fails the test.
  ~Process();

  pid_t pid() const { return pid_; }
  const std::string& name() const { return name_; }

  void Signal(int signal) const;
  void Kill() const;
  void Stop() const;  // and waits until the kernel has stopped it
  void Continue() const;

  // Everything it has written so far.
  std::string output() const;
  std::string log() const;

  // Waits for a line that contains `text` on stderr, and returns it: the first at or after `from`,
  // a position in log(). Nothing: it ended, or `timeout` passed, without one.
  std::optional<std::string> WaitForLog(const std::string& text, size_t from = 0,
                                        std::chrono::milliseconds timeout = kPatience) const;

  // The same for a line that contains all of `words`.
  std::optional<std::string> WaitForLogLine(const std::vector<std::string>& words, size_t from = 0,
                                            std::chrono::milliseconds timeout = kPatience) const;

  // Waits for the line `listening ADDRESS` on stdout and returns ADDRESS.
  std::optional<std::string> WaitForAddress(std::chrono::milliseconds timeout = kPatience) const;

  // Waits for its end: the exit status, or minus the signal that ended it. Nothing: `timeout`
  // passed. What it wrote has been read then.
  std::optional<int> WaitForExit(std::chrono::milliseconds timeout = kPatience);

  bool running() const;

 private:
  friend class Spawner;
  Process(std::string name, pid_t pid, int out, int err);
  void Read(int out, int err);
  std::optional<std::string> WaitForLine(const std::vector<std::string>& words,
                                         const std::string& in, size_t from,
                                         std::chrono::milliseconds timeout) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string name_;
  const pid_t pid_;
  std::optional<int> exit_;  // the waiting thread's
  mutable absl::Mutex mu_;
  std::string output_ ABSL_GUARDED_BY(mu_);
  std::string log_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;  // both ends of its output
  std::thread reader_;
};

// The parent of all: `--die-with-parent` binds a process to the thread that started it, so one
// thread that lives as long as the Spawner starts them all.
class Spawner {
 public:
  Spawner();
  ~Spawner();

  // Starts `binary` (see Binary) with `arguments`, and with `environment` beside this process's
  // own.
  std::unique_ptr<Process> Start(const std::string& binary,
                                 const std::vector<std::string>& arguments,
                                 const std::map<std::string, std::string>& environment = {});

 private:
  void Loop();

  absl::Mutex mu_;
  std::function<void()> errand_ ABSL_GUARDED_BY(mu_);
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace ringserve::test
