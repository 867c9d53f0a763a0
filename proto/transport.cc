#include "proto/transport.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

constexpr int kMaxStreamsPerConnection = 256;  // bounds what a rapid reset costs
constexpr int kMaxMetadataBytes = 16 << 10;
constexpr int kKeepaliveTimeMs = 10'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kMinPingIntervalMs =
    5'000;  // below our clients' keepalive: honest pings are no offence
constexpr int kHandshakeTimeoutMs = 5'000;
constexpr int kFirstReconnectMs = 100;
constexpr int kSlowestReconnectMs = 1'000;
constexpr size_t kMaxPemBytes = 1 << 20;

// What the two ends have in common.
template <typename SetArgument>
void SetSharedArguments(const SetArgument& set) {
  // The probe grows windows far beyond what a proxy should hold, and costs time.
  set(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  set(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  set(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  // Else gRPC stops its pings after two without data, and a job that computes for minutes sends
  // none.
  set(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}

// At least one block of this kind ("RSA PRIVATE KEY" is a private key, too), and every block is
// whole and in base 64. What the bytes mean is for gRPC to judge.
bool HoldsPem(absl::string_view text, absl::string_view kind) {
  bool found = false, inside = false;
  std::string body;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripTrailingAsciiWhitespace(line);
    if (absl::StartsWith(line, "-----BEGIN ")) {
      if (inside) return false;
      found |= absl::EndsWith(line, absl::StrCat(kind, "-----"));
      inside = true;
      body.clear();
    } else if (absl::StartsWith(line, "-----END ")) {
      std::string decoded;
      if (!inside || !absl::Base64Unescape(body, &decoded) || decoded.empty()) return false;
      inside = false;
    } else if (inside && !absl::StrContains(line, ":")) {  // old keys have headers
      absl::StrAppend(&body, line);
    }
  }
  return found && !inside;
}

absl::StatusOr<std::string> ReadPem(absl::string_view flag, const std::string& path,
                                    absl::string_view kind) {
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " '", path, "': ", what));
  };
  std::ifstream file(path, std::ios::binary);
  if (!file) return wrong(absl::StrCat("cannot be opened: ", std::strerror(errno)));
  std::string text(kMaxPemBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) return wrong("cannot be read");
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxPemBytes)
    return wrong(absl::StrCat("larger than ", kMaxPemBytes, " bytes: no PEM file"));
  if (!HoldsPem(text, kind)) return wrong(absl::StrCat("holds no PEM ", kind));
  return text;
}

struct Pem {
  std::string cert, key, ca;
};

// Reads those files that are named.
absl::StatusOr<Pem> ReadAll(const TlsFiles& tls) {
  if (tls.cert.empty() != tls.key.empty()) {
    return absl::InvalidArgumentError(tls.key.empty() ? "--tls-cert is given without --tls-key"
                                                      : "--tls-key is given without --tls-cert");
  }
  Pem pem;
  const auto read = [](absl::string_view flag, const std::string& path, absl::string_view kind,
                       std::string& into) -> absl::Status {
    if (path.empty()) return absl::OkStatus();
    absl::StatusOr<std::string> text = ReadPem(flag, path, kind);
    if (!text.ok()) return text.status();
    into = *std::move(text);
    return absl::OkStatus();
  };
  absl::Status status = read("--tls-cert", tls.cert, "CERTIFICATE", pem.cert);
  if (status.ok()) status = read("--tls-key", tls.key, "PRIVATE KEY", pem.key);
  if (status.ok()) status = read("--tls-ca", tls.ca, "CERTIFICATE", pem.ca);
  if (!status.ok()) return status;
  return pem;
}

// Digits alone, where SimpleAtoi takes signs and spaces, too.
bool ParseNumber(absl::string_view text, int most, int* value) {
  return std::all_of(text.begin(), text.end(), absl::ascii_isdigit) &&
         absl::SimpleAtoi(text, value) && *value <= most;
}

// 127.0.0.0/8 in full dotted form, "::1" or "localhost": what is surely loopback, and nothing else.
bool IsLoopback(absl::string_view host) {
  if (host == "localhost" || host == "::1") return true;
  const std::vector<absl::string_view> parts = absl::StrSplit(host, '.');
  if (parts.size() != 4 || parts[0] != "127") return false;
  return std::all_of(parts.begin(), parts.end(), [](absl::string_view part) {
    int value = 0;
    return part.size() <= 3 && ParseNumber(part, 255, &value);
  });
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const TlsFiles& tls) {
  if (!tls.enabled()) return grpc::InsecureServerCredentials();
  if (tls.cert.empty() && tls.key.empty()) {
    return absl::InvalidArgumentError(
        "--tls-ca is given without --tls-cert and --tls-key: a listener needs its own");
  }
  absl::StatusOr<Pem> pem = ReadAll(tls);
  if (!pem.ok()) return pem.status();
  grpc::SslServerCredentialsOptions options(
      tls.ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                     : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = std::move(pem->ca);
  options.pem_key_cert_pairs.push_back({std::move(pem->key), std::move(pem->cert)});
  return grpc::SslServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const TlsFiles& tls) {
  if (!tls.enabled()) return grpc::InsecureChannelCredentials();
  if (tls.ca.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert is given without --tls-ca: a client needs to know whom to trust");
  }
  absl::StatusOr<Pem> pem = ReadAll(tls);
  if (!pem.ok()) return pem.status();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = std::move(pem->ca);
  options.pem_private_key = std::move(pem->key);
  options.pem_cert_chain = std::move(pem->cert);
  return grpc::SslCredentials(options);
}

absl::Status CheckListenAddress(const std::string& address, const TlsFiles& tls, bool insecure) {
  if (absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:")) {
    const size_t name = address.find(':') + 1;
    if (name == address.size())
      return absl::InvalidArgumentError("listen address '" + address + "' has no path");
    return absl::OkStatus();
  }
  const size_t colon = address.rfind(':');
  int port = 0;
  absl::string_view host =
      absl::string_view(address).substr(0, colon == std::string::npos ? 0 : colon);
  const bool bracketed = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  if (colon == std::string::npos || host.empty() || (!bracketed && absl::StrContains(host, ":")) ||
      !ParseNumber(absl::string_view(address).substr(colon + 1), 65535, &port)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "listen address '", address, "' is neither HOST:PORT (port 0 to 65535) nor unix:PATH"));
  }
  if (IsLoopback(host) || tls.enabled() || insecure) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("listen address '", address,
                   "' is beyond loopback: give --tls-cert and --tls-key, or --insecure to "
                   "serve anyone who can reach it"));
}

absl::Status CheckPlaintextAddress(const std::string& flag, const std::string& address) {
  if (address.empty()) return absl::OkStatus();
  const absl::Status status = CheckListenAddress(address, /*tls=*/{}, /*insecure=*/true);
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", status.message()));
}

std::string BoundAddress(const std::string& listen, int port) {
  if (absl::StartsWith(listen, "unix")) return listen;
  return absl::StrCat(listen.substr(0, listen.rfind(':')), ":", port);
}

void ConfigureServer(grpc::ServerBuilder& builder) {
  SetSharedArguments([&](const char* key, int value) { builder.AddChannelArgument(key, value); });
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT,
                             0);  // two servers on one port: the second must fail
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.SetMaxReceiveMessageSize(kReceiveLimitBytes);
  // gRPC inflates before it looks at any limit: two megabytes sent would be two gigabytes held.
  for (int algorithm = GRPC_COMPRESS_NONE + 1; algorithm < GRPC_COMPRESS_ALGORITHMS_COUNT;
       ++algorithm) {
    builder.SetCompressionAlgorithmSupportStatus(static_cast<grpc_compression_algorithm>(algorithm),
                                                 false);
  }
}

grpc::ChannelArguments MakeChannelArguments() {
  grpc::ChannelArguments arguments;
  SetSharedArguments([&](const char* key, int value) { arguments.SetInt(key, value); });
  arguments.SetInt(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kFirstReconnectMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kSlowestReconnectMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
                   kHandshakeTimeoutMs);  // how long one attempt may take
  arguments.SetMaxReceiveMessageSize(kReceiveLimitBytes);
  return arguments;
}

bool PeerIsTrusted(const grpc::ServerContextBase& context, const TlsFiles& tls) {
  if (!tls.enabled()) return true;
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  return auth != nullptr && auth->IsPeerAuthenticated();
}

uint64_t RaiseFileLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  const rlimit raised = {limit.rlim_max, limit.rlim_max};
  return setrlimit(RLIMIT_NOFILE, &raised) == 0 ? raised.rlim_cur : limit.rlim_cur;
}

}  // namespace ringserve
