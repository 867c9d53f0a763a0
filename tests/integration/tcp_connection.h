// A plain TCP connection to a service, for bytes that no gRPC client would send.
#pragma once

#include <string>

namespace ringserve::test {

class TcpConnection {
 public:
  // The preface of HTTP/2 and an empty SETTINGS frame: a client that then says nothing more.
  static const std::string kHttp2Greeting;

  // `address`: an IPv4 address and port.
  explicit TcpConnection(const std::string& address);
  ~TcpConnection();
  TcpConnection(TcpConnection&& other) noexcept;
  TcpConnection& operator=(TcpConnection&&) = delete;

  bool connected() const { return socket_ >= 0; }

  // As much of it as the peer takes before it closes; does not raise SIGPIPE.
  void Send(const std::string& bytes);

  // All that comes until the peer closes.
  std::string ReadAll();

 private:
  int socket_ = -1;
};

}  // namespace ringserve::test
