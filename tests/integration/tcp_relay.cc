#include "tests/integration/tcp_relay.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace ringserve::test {
namespace {

sockaddr_in NameOf(const std::string& host, int port) {
  sockaddr_in name = {};
  name.sin_family = AF_INET;
  name.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, host.c_str(), &name.sin_addr);
  return name;
}

const sockaddr* Address(const sockaddr_in& name) {
  return reinterpret_cast<const sockaddr*>(&name);
}

// Until either end is closed.
void Pump(int from, int to) {
  std::vector<char> bytes(1 << 16);
  for (;;) {
    const ssize_t count = recv(from, bytes.data(), bytes.size(), 0);
    if (count <= 0) break;
    for (ssize_t sent = 0; sent < count;) {
      const ssize_t now = send(to, bytes.data() + sent, count - sent, MSG_NOSIGNAL);
      if (now <= 0) return;
      sent += now;
    }
  }
  shutdown(to, SHUT_RDWR);
}

}  // namespace

TcpRelay::TcpRelay(std::string address) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in name = NameOf("127.0.0.1", 0);
  socklen_t size = sizeof(name);
  if (bind(listener_, Address(name), size) != 0 || listen(listener_, 1) != 0 ||
      getsockname(listener_, reinterpret_cast<sockaddr*>(&name), &size) != 0) {
    std::abort();
  }
  address_ = absl::StrCat("127.0.0.1:", ntohs(name.sin_port));
  PassTo(address);
  thread_ = std::thread([this] { Serve(); });
}

TcpRelay::~TcpRelay() {
  Cut();
  thread_.join();
  close(listener_);
}

void TcpRelay::PassTo(const std::string& address) {
  absl::MutexLock lock(&mu_);
  target_ = address;
}

void TcpRelay::Break() {
  absl::MutexLock lock(&mu_);
  for (const int end : ends_) {
    if (end >= 0) shutdown(end, SHUT_RDWR);
  }
}

void TcpRelay::Cut() {
  {
    absl::MutexLock lock(&mu_);
    if (std::exchange(cut_, true)) return;
    shutdown(listener_, SHUT_RDWR);
  }
  Break();
}

void TcpRelay::Serve() {
  const auto known = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return cut_ || !target_.empty(); };
  std::string target;
  {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&known));
    target = target_;
  }
  for (;;) {
    const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) return;
    Pass(client, target);
  }
}

void TcpRelay::Pass(int client, const std::string& target) {
  const size_t colon = target.rfind(':');
  const sockaddr_in name = NameOf(target.substr(0, colon), std::stoi(target.substr(colon + 1)));
  const int service = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  bool wanted = connect(service, Address(name), sizeof(name)) == 0;
  {
    absl::MutexLock lock(&mu_);
    wanted = wanted && !cut_;
    if (wanted) ends_[0] = client, ends_[1] = service;
  }
  if (wanted) {
    std::thread back([&] { Pump(service, client); });
    Pump(client, service);
    back.join();
  }
  absl::MutexLock lock(&mu_);
  ends_[0] = ends_[1] = -1;
  close(client);
  close(service);
}

}  // namespace ringserve::test
