// A stretch of wire between one client and a service, which can be broken and mended, or cut: the
// service then sees what it sees when a client's machine vanishes.
#pragma once

#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ringserve::test {

class TcpRelay {
 public:
  // Passes connections, one at a time, on to `address` (IPv4 and port).
  explicit TcpRelay(std::string address);
  // The same once the address is known: until then they wait.
  TcpRelay() : TcpRelay("") {}
  void PassTo(const std::string& address);
  ~TcpRelay();  // cuts it

  const std::string& address() const { return address_; }

  // Both ends of the present connection are closed, whatever is under way; the next is passed on.
  void Break();

  // Both connections are closed, whatever is under way; nothing is passed on any more.
  void Cut();

 private:
  void Serve();
  void Pass(int client, const std::string& target);

  std::string address_;
  int listener_ = -1;
  absl::Mutex mu_;
  bool cut_ ABSL_GUARDED_BY(mu_) = false;
  std::string target_ ABSL_GUARDED_BY(mu_);
  int ends_[2] ABSL_GUARDED_BY(mu_) = {-1, -1};  // client, service
  std::thread thread_;
};

}  // namespace ringserve::test
