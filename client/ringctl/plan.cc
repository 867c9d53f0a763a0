#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/ringctl/attend_file.h"
#include "client/ringctl/command.h"
#include "client/ringctl/dims.h"
#include "client/ringctl/names.h"
#include "client/ringctl/plan_json.h"
#include "client/ringctl/plan_picture.h"
#include "client/ringctl/request_options.h"

namespace ringserve {
namespace {

using nlohmann::ordered_json;

struct PlanOptions {
  std::string in;
  Dims dims;
  RequestOptions request;
  std::string layout = "bhsd";
  std::string picture;
  bool backward = false;
  bool json = false;
};

absl::StatusOr<v1::AttentionSpec> SpecOf(const PlanOptions& options) {
  const v1::TensorLayout layout = *TensorLayoutNamed(options.layout);
  if (options.in.empty()) {
    absl::StatusOr<v1::AttentionSpec> spec = SpecOf(options.dims, layout);
    if (spec.ok()) return spec;
    return absl::InvalidArgumentError(absl::StrCat(
        spec.status().message(), ": give an IN file, or --q-heads, --q-len and --head-dim"));
  }
  if (options.dims.any()) {
    return absl::InvalidArgumentError(
        absl::StrCat("both ", options.in, " and dims are given: the file says its own dims"));
  }
  const absl::StatusOr<AttendFile> file = OpenAttendFile(options.in, layout);
  if (!file.ok()) return file.status();
  return file->spec;
}

ordered_json StepsJson(const v1::PlanResponse& response) {
  ordered_json ranks = ordered_json::array();
  for (const v1::RankSteps& rank : response.ranks()) {
    ordered_json steps = ordered_json::array();
    for (const v1::RankSteps::Step& step : rank.steps()) {
      steps.push_back(ordered_json{{"kv_rank", step.kv_rank()},
                                   {"q_rank", step.q_rank()},
                                   {"work", step.work()},
                                   {"tiles", step.tiles()},
                                   {"bytes_sent", step.bytes_sent()}});
    }
    ranks.push_back(std::move(steps));
  }
  return ranks;
}

int RunPlan(const PlanOptions& options, const ClientOptions& client_options) {
  const absl::StatusOr<v1::AttentionSpec> spec = SpecOf(options);
  if (!spec.ok()) return Misused(spec.status());
  v1::PlanRequest request;
  *request.mutable_spec() = *spec;
  absl::Status status =
      ApplyRequestOptions(options.request, *request.mutable_spec(), *request.mutable_options());
  if (!status.ok()) return Misused(status);
  if (!options.picture.empty()) {
    status = CheckPicturePath(options.picture);
    if (!status.ok()) return Misused(status);
  }
  AttendInputs inputs;
  const absl::StatusOr<ExtrasFiles> extras =
      OpenExtras(options.request.extras, *request.mutable_spec(), inputs);
  if (!extras.ok()) return Misused(extras.status());
  request.mutable_options()->set_return_lse(!options.backward);
  request.set_backward(options.backward);

  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(client_options);
  if (!client.ok()) return Misused(client.status());
  const absl::StatusOr<v1::PlanResponse> response = (*client)->Plan(request);
  if (!response.ok()) return Failed(response.status(), client_options);
  if (!options.picture.empty()) {
    status = WritePicture(DrawPlan(request.spec(), *response), options.picture);
    if (!status.ok()) return Misused(status);
  }
  if (!options.json) {
    const std::string& text = response->description();
    std::printf("%s%s", text.c_str(), text.empty() || text.back() != '\n' ? "\n" : "");
    return kExitOk;
  }
  ordered_json json = PlanJson(response->plan());
  json["peak_bytes"] = ordered_json(response->plan().peak_bytes());
  json["estimated_seconds"] = response->plan().estimated_seconds();
  json["steps"] = StepsJson(*response);
  std::printf("%s\n", json.dump().c_str());
  return kExitOk;
}

}  // namespace

void AddPlanCommand(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command =
      app.add_subcommand("plan", "Say how a request would be computed, without sending it");
  command->add_option("IN", options->in, "Safetensors file with q, k and v, for their dims");
  AddDims(*command, options->dims, "Dims, where there is no file");
  command->add_option("--layout", options->layout, "Order of the tensors' dimensions")
      ->check(CLI::IsMember(TensorLayoutNames()))
      ->capture_default_str();
  AddRequestOptions(*command, options->request);
  CLI::Option* picture =
      command
          ->add_option("--picture", options->picture,
                       "Draw mask, layout and work per rank into this file, .svg or .png")
          ->type_name("FILE");
  command->add_flag("--backward", options->backward, "Of its gradients (AttendBackward)")
      ->excludes(picture);
  command->add_flag("--json", options->json, "One JSON object");
  command->callback([options, &invocation] {
    invocation.run = [options, &invocation] { return RunPlan(*options, invocation.client); };
  });
}

}  // namespace ringserve
