// A cluster on this machine: one coordinator and some workers as child processes, started, watched,
// started again where one dies, and ended together. What `ringctl up` runs.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/ringctl/child.h"
#include "client/ringctl/join_watch.h"
#include "proto/transport.h"

namespace ringserve {

struct LocalClusterOptions {
  std::string server_program, worker_program;
  std::string listen;  // of the coordinator; port 0: any
  int workers = 1;     // >= 1
  // Worker i gets --device devices[i % devices.size()]; empty: it chooses.
  std::vector<std::string> devices;
  int threads = 1;            // of each worker
  uint64_t memory_bytes = 0;  // of each worker; 0: what the worker finds right
  TlsFiles tls;               // of all; a listener needs all three
  bool insecure = false;
  bool until_eof = false;  // ends with standard input, too
  std::string log_level;   // empty: the children's default
  std::chrono::milliseconds restart_delay{1'000};
  std::chrono::milliseconds grace{5'000};  // for the coordinator, then again for the workers
};

class LocalCluster {
 public:
  explicit LocalCluster(LocalClusterOptions options);
  ~LocalCluster();  // kills what still runs

  // Starts everything and keeps it up until SIGINT, SIGTERM or SIGHUP, or with `until_eof` the end
  // of standard input; blocks those signals, and SIGCHLD, in this thread and in those it starts.
  // Prints on stdout a line "ROLE pid PID" for each process started, and "ready ADDRESS" as soon as
  // all have joined; what else happens, on stderr.
  //
  // OK: told to end, and nothing is left. FAILED_PRECONDITION: a child ended by itself before the
  // cluster was ready (options that do not go together, a port in use; it has said so on stderr).
  // INTERNAL: the system refused to start one.
  absl::Status Run();

 private:
  using Clock = std::chrono::steady_clock;

  struct Member {
    std::string role;
    std::optional<Child> child;
    std::optional<Clock::time_point> start_at;  // while it has no child
  };

  bool is_coordinator(const Member& member) const { return &member == &members_[0]; }
  std::vector<std::string> Arguments(const Member& member) const;
  void AppendDevice(const Member& member, std::vector<std::string>& arguments) const;

  absl::Status StartDue();
  absl::Status Reap();
  absl::Status Listening(const std::string& address);
  void ExpectAll();
  void TellIfReady();
  void TellIfSlow();

  void Wait(std::chrono::milliseconds at_most);
  // Whether a signal, or the end of standard input, asks for the end since the last call.
  bool AskedToEnd();
  bool InputEnded();
  void Stop();
  bool AwaitEnd(size_t first, size_t end, std::chrono::milliseconds timeout);

  const LocalClusterOptions options_;
  const int signals_;            // a signalfd
  int input_;                    // whose end is awaited; -1: none, or it came
  std::vector<Member> members_;  // the coordinator first
  std::string address_;          // as the coordinator bound it; empty: not yet
  std::unique_ptr<JoinWatch> watch_;
  bool ready_ = false;
  std::optional<Clock::time_point> slow_at_;  // when to say that the start takes long
};

// Where a client on this machine reaches a listener at `address`: 0.0.0.0 is no destination.
std::string ReachableAddress(const std::string& address);

}  // namespace ringserve
