// Options that server and worker spell alike.
#pragma once

#include <string>

#include "proto/log.h"
#include "proto/option_table.h"
#include "proto/transport.h"

namespace ringserve {

// The files are read, and checked, when the credentials are made.
inline void AddTls(OptionTable& table, TlsFiles& tls) {
  table.Text("tls-cert", "PEM", tls.cert,
             "Certificate (chain) of this process: a listener's own, or a client's identity; needs "
             "--tls-key");
  table.Text("tls-key", "PEM", tls.key, "Private key of --tls-cert");
  table.Text("tls-ca", "PEM", tls.ca,
             "Certificates of the authorities to trust; on a listener, clients must then present a "
             "certificate");
}

inline void AddHealthListen(OptionTable& table, std::string& address) {
  table.Text(
      "health-listen", "ADDRESS", address,
      "HOST:PORT or unix:PATH that serves gRPC health checks alone, always in plaintext, for "
      "probes: service '' is readiness, 'liveness' is that the process answers");
}

inline void AddMetricsListen(OptionTable& table, std::string& address) {
  table.Text("metrics-listen", "ADDRESS", address,
             "HOST:PORT that serves /metrics for Prometheus, always in plain HTTP");
}

inline void AddLog(OptionTable& table, LogOptions& log) {
  table.OneOf("log-format", {"text", "json"}, log.format, "text, or json: one object per line");
  table.OneOf("log-level", {"trace", "debug", "info", "warn", "error", "off"}, log.level,
              "The least severe lines to write");
}

inline void AddDieWithParent(OptionTable& table, bool& die_with_parent) {
  table.Switch("die-with-parent", die_with_parent,
               "End (SIGKILL) as soon as the thread that started this process ends");
}

}  // namespace ringserve
