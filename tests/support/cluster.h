// A whole service under test: real server and worker processes on loopback, each on a port of its
// own, with their logs, their deaths and their restarts.
#pragma once

#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/transport.h"
#include "ringserve/client.h"
#include "ringserve/v1/attention.pb.h"
#include "tests/support/process.h"
#include "tests/support/wait.h"

namespace ringserve::test {

struct ClusterOptions {
  int workers = 2;
  int threads = 1;  // of each worker
  std::chrono::milliseconds lost_after{1'000 * kSlowness};
  std::vector<std::string> server_flags, worker_flags;
  TlsFiles tls;         // of server and workers
  TlsFiles client_tls;  // of client()
};

class Cluster {
 public:
  // Waits until all workers have joined. Throws std::runtime_error, with the logs, where that does
  // not happen.
  explicit Cluster(ClusterOptions options = {});

  const std::string& address() const { return address_; }
  Client& client() { return *client_; }
  // Another one, with its own connection.
  std::unique_ptr<Client> NewClient() const;

  Process& server() { return *server_; }
  Process& worker(int i) { return *workers_[i]; }
  const Process& worker(int i) const { return *workers_[i]; }
  int workers() const { return static_cast<int>(workers_.size()); }

  // Kills what is left of it and starts it anew, the server at its old address.
  void RestartServer();
  void RestartWorker(int i);
  // One more.
  void AddWorker(std::vector<std::string> more_flags = {});

  // Exactly `count` workers are members, none of them one that was replaced, and an epoch of theirs
  // is ready.
  bool AwaitWorkers(int count, std::chrono::milliseconds timeout = kPatience);

  // No job is queued or unfinished, and no worker has memory reserved.
  bool AwaitIdle(std::chrono::milliseconds timeout = kPatience);

  // Everything that the processes have logged, for the message of a failed test.
  std::string Logs() const;

 private:
  std::vector<std::string> Flags() const;
  void StartServer(const std::string& listen);

  const ClusterOptions options_;
  Spawner spawner_;
  std::string address_;
  std::unique_ptr<Process> server_;
  std::vector<std::unique_ptr<Process>> workers_;
  std::vector<std::vector<std::string>> worker_flags_;
  std::set<int64_t> replaced_;  // process ids
  std::unique_ptr<Client> client_;
};

}  // namespace ringserve::test
