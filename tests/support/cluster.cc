#include "tests/support/cluster.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ringserve::test {
namespace {

void AddTls(const TlsFiles& tls, std::vector<std::string>& flags) {
  const std::pair<const char*, const std::string*> files[] = {
      {"--tls-cert", &tls.cert}, {"--tls-key", &tls.key}, {"--tls-ca", &tls.ca}};
  for (const auto& [flag, path] : files) {
    if (!path->empty()) flags.insert(flags.end(), {flag, *path});
  }
}

}  // namespace

Cluster::Cluster(ClusterOptions options) : options_(std::move(options)) {
  StartServer("127.0.0.1:0");
  client_ = NewClient();
  for (int i = 0; i < options_.workers; ++i) AddWorker();
  if (!AwaitWorkers(options_.workers)) {
    throw std::runtime_error(absl::StrCat("the workers did not join:\n", Logs()));
  }
}

std::unique_ptr<Client> Cluster::NewClient() const {
  absl::StatusOr<std::unique_ptr<Client>> client =
      Client::Connect({.server = address_,
                       .tls_cert = options_.client_tls.cert,
                       .tls_key = options_.client_tls.key,
                       .tls_ca = options_.client_tls.ca});
  if (!client.ok()) throw std::runtime_error(client.status().ToString());
  return *std::move(client);
}

std::vector<std::string> Cluster::Flags() const {
  std::vector<std::string> flags = {"--die-with-parent", "--log-level", "debug"};
  AddTls(options_.tls, flags);
  return flags;
}

void Cluster::StartServer(const std::string& listen) {
  std::vector<std::string> flags = Flags();
  flags.insert(flags.end(),
               {"--listen", listen, "--lost-after-ms", absl::StrCat(options_.lost_after.count()),
                "--heartbeat-interval-ms", absl::StrCat(options_.lost_after.count() / 5)});
  flags.insert(flags.end(), options_.server_flags.begin(), options_.server_flags.end());
  server_ = spawner_.Start(Binary("ringserve-server"), flags);
  const std::optional<std::string> address = server_->WaitForAddress();
  if (!address.has_value()) {
    throw std::runtime_error(absl::StrCat("the server does not listen:\n", server_->log()));
  }
  address_ = *address;
}

void Cluster::RestartServer() {
  server_.reset();
  StartServer(address_);
}

void Cluster::AddWorker(std::vector<std::string> more_flags) {
  std::vector<std::string> flags = Flags();
  flags.insert(flags.end(),
               {"--coordinator", address_, "--threads", absl::StrCat(options_.threads)});
  flags.insert(flags.end(), options_.worker_flags.begin(), options_.worker_flags.end());
  flags.insert(flags.end(), more_flags.begin(), more_flags.end());
  worker_flags_.push_back(flags);
  workers_.push_back(spawner_.Start(Binary("ringserve-worker"), flags));
}

void Cluster::RestartWorker(int i) {
  replaced_.insert(workers_[i]->pid());
  workers_[i].reset();
  workers_[i] = spawner_.Start(Binary("ringserve-worker"), worker_flags_[i]);
}

bool Cluster::AwaitWorkers(int count, std::chrono::milliseconds timeout) {
  return WaitUntil(
      [&] {
        const absl::StatusOr<v1::GetClusterResponse> cluster = client_->GetCluster();
        return cluster.ok() && cluster->workers_size() == count &&
               std::ranges::none_of(
                   cluster->workers(),
                   [&](const v1::Worker& worker) { return replaced_.contains(worker.pid()); }) &&
               cluster->epoch().empty() == (count == 0);
      },
      timeout);
}

bool Cluster::AwaitIdle(std::chrono::milliseconds timeout) {
  return WaitUntil(
      [&] {
        const absl::StatusOr<v1::GetClusterResponse> cluster = client_->GetCluster();
        if (!cluster.ok() || cluster->queued_jobs() + cluster->unfinished_jobs() > 0) return false;
        for (const v1::Worker& worker : cluster->workers()) {
          if (worker.reserved_bytes() > 0) return false;
        }
        return true;
      },
      timeout);
}

std::string Cluster::Logs() const {
  std::string logs = absl::StrCat("--- server\n", server_ == nullptr ? "" : server_->log());
  for (const auto& worker : workers_) absl::StrAppend(&logs, "--- worker\n", worker->log());
  return logs;
}

}  // namespace ringserve::test
