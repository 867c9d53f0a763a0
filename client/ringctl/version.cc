#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "client/ringctl/command.h"
#include "proto/protocol.h"

namespace ringserve {
namespace {

int RunVersion(bool json) {
  if (json) {
    const nlohmann::ordered_json version = {{"ringctl", RINGSERVE_VERSION},
                                            {"protocol", kProtocolVersion}};
    std::printf("%s\n", version.dump().c_str());
  } else {
    std::printf("ringctl %s\n", RINGSERVE_VERSION);
  }
  return kExitOk;
}

}  // namespace

void AddVersionCommand(CLI::App& app, Invocation& invocation) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("version", "Print the version");
  command->add_flag("--json", *json, "One JSON object");
  command->callback([json, &invocation] { invocation.run = [json] { return RunVersion(*json); }; });
}

}  // namespace ringserve
