// What every listener and every channel of ringserve has in common: credentials, limits and the
// gRPC settings that were measured (no BDP probe, no compression).
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ringserve {

// PEM files; all empty: plaintext. A listener needs cert and key; with ca it demands client
// certificates signed by it. A client needs ca; cert and key are its identity where one is
// demanded.
struct TlsFiles {
  std::string cert, key, ca;

  bool enabled() const { return !cert.empty() || !key.empty() || !ca.empty(); }
};

// INVALID_ARGUMENT, naming flag and file: a file is missing, unreadable or not PEM; cert without
// key; a listener without cert and key; a client without ca. Plaintext credentials where `tls` is
// not enabled.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const TlsFiles& tls);
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const TlsFiles& tls);

// INVALID_ARGUMENT: `address` (HOST:PORT or unix:PATH) is beyond loopback and neither TLS nor
// `insecure`. Host names other than "localhost" count as beyond loopback; unix sockets do not.
absl::Status CheckListenAddress(const std::string& address, const TlsFiles& tls, bool insecure);

// The same for `flag`, a listener that is exempt from that rule; empty: there is none.
absl::Status CheckPlaintextAddress(const std::string& flag, const std::string& address);

// `listen`, with the port that the system chose.
std::string BoundAddress(const std::string& listen, int port);

// Limits and settings for a server; the health service and the reflection plugin are the caller's.
void ConfigureServer(grpc::ServerBuilder& builder);

// Channel arguments: message limits, no BDP probe, no gRPC retries, keepalive, own subchannel pool.
grpc::ChannelArguments MakeChannelArguments();

// True when the call's peer presented a certificate that the listener verified, or came over
// plaintext.
bool PeerIsTrusted(const grpc::ServerContextBase& context, const TlsFiles& tls);

// Raises RLIMIT_NOFILE to its hard limit; returns the limit now in force.
uint64_t RaiseFileLimit();

}  // namespace ringserve
