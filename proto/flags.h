// Command line flags that every binary spells alike.
#pragma once

#include <CLI/CLI.hpp>

#include "proto/transport.h"

namespace ringserve {

// --tls-cert, --tls-key, --tls-ca, or RINGSERVE_TLS_CERT, _KEY, _CA. `tls` outlives the parsing.
// The files are read, and checked, when the credentials are made.
inline void AddTlsFlags(CLI::App& app, TlsFiles& tls) {
  const auto add = [&](const char* flag, const char* variable, std::string& path,
                       const char* what) {
    app.add_option(flag, path, what)->envname(variable)->type_name("PEM")->group("TLS");
  };
  add("--tls-cert", "RINGSERVE_TLS_CERT", tls.cert,
      "Certificate (chain) of this process: a listener's own, or a client's identity; needs "
      "--tls-key");
  add("--tls-key", "RINGSERVE_TLS_KEY", tls.key, "Private key of --tls-cert");
  add("--tls-ca", "RINGSERVE_TLS_CA", tls.ca,
      "Certificates of the authorities to trust; on a listener, clients must then present a "
      "certificate");
}

}  // namespace ringserve
