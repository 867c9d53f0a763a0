#include <string>

#include <CLI/CLI.hpp>

#include "client/ringctl/command.h"

namespace {

constexpr char kFooter[] =
    "Exit codes: 0 done; 1 a fault of the service or of this machine; 2 command line or local file "
    "wrong;\n"
    "3 the server refuses the request as it is; 4 no server, no or too few workers, or busy: worth "
    "another\n"
    "try; 5 deadline or cancelled; 6 the answer is wrong, or nothing of it can be compared "
    "(--verify);\n"
    "7 credentials refused.";

}  // namespace

int main(int argc, char** argv) {
  ringserve::Invocation invocation;
  invocation.client.server = "127.0.0.1:7070";

  CLI::App app("Exact attention over long sequences, served by a ring of workers.", "ringctl");
  app.footer(kFooter);
  app.require_subcommand(1);
  app.fallthrough();  // --server may stand after the subcommand
  app.add_option("--server", invocation.client.server, "HOST:PORT or unix:PATH of the server")
      ->envname("RINGSERVE_SERVER")
      ->capture_default_str();
  app.add_option("--tls-ca", invocation.client.tls_ca, "PEM: the authority that signed the server")
      ->envname("RINGSERVE_TLS_CA");
  app.add_option("--tls-cert", invocation.client.tls_cert,
                 "PEM: our certificate, where one is asked for")
      ->envname("RINGSERVE_TLS_CERT");
  app.add_option("--tls-key", invocation.client.tls_key, "PEM: its private key")
      ->envname("RINGSERVE_TLS_KEY");

  ringserve::AddUpCommand(app, invocation);
  ringserve::AddStatusCommand(app, invocation);
  ringserve::AddAttendCommand(app, invocation);
  ringserve::AddPlanCommand(app, invocation);
  ringserve::AddBenchCommand(app, invocation);
  ringserve::AddDemoCommand(app, invocation);
  ringserve::AddSelftestCommand(app, invocation);
  ringserve::AddVersionCommand(app, invocation);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? ringserve::kExitOk : ringserve::kExitUsage;
  }
  return invocation.run();
}
