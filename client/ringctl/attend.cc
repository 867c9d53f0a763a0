#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/ringctl/attend_file.h"
#include "client/ringctl/attend_report.h"
#include "client/ringctl/command.h"
#include "client/ringctl/names.h"
#include "client/ringctl/progress_bar.h"
#include "client/ringctl/request_options.h"
#include "client/ringctl/safetensors_writer.h"
#include "client/ringctl/seconds.h"
#include "client/ringctl/verify.h"

namespace ringserve {
namespace {

constexpr int kMaxRetries = 1000;

struct AttendOptions {
  std::string in, out;
  RequestOptions request;
  std::string layout = "bhsd";
  double deadline_seconds = 600;
  int retries = 4;
  double wait_seconds = 0;
  bool verify = false;
  bool json = false;
};

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> CreateOutput(const AttendOptions& options,
                                                                const v1::AttentionSpec& spec) {
  const int64_t batch = spec.batch(), heads = spec.q_heads(), length = spec.q_len();
  const std::string dtype = v1::DType_Name(spec.dtype()).substr(sizeof("DTYPE_") - 1);
  SafetensorsWriter::Tensor out{"out", dtype, {batch, heads, length, spec.value_dim()}};
  if (spec.tensor_layout() == v1::TENSOR_LAYOUT_BSHD) std::swap(out.shape[1], out.shape[2]);
  const SafetensorsWriter::Tensor lse{
      "lse", spec.dtype() == v1::DTYPE_F64 ? "F64" : "F32", {batch, heads, length}};
  return SafetensorsWriter::Create(options.out, {out, lse}, {options.in});
}

absl::StatusOr<AttendResult> Call(const AttendOptions& options, const v1::AttendHeader& header,
                                  const AttendInputs& inputs, const AttendOutputs& outputs,
                                  Client& client) {
  ProgressBar bar(inputs.q.size() + inputs.k.size() + inputs.v.size() + inputs.bias.size());
  CallOptions call;
  call.deadline = Milliseconds(options.deadline_seconds);
  call.max_attempts = options.retries + 1;
  call.wait_for_ready = Milliseconds(options.wait_seconds);
  call.progress = [&bar](uint64_t done, uint64_t total) { bar.Update(done, total); };
  absl::Status last;
  call.on_retry = [&](int attempt, const absl::Status& why) {
    if (why == std::exchange(last, why)) return;  // a long wait would say it four times a second
    bar.Clear();
    std::fprintf(stderr, "ringctl: attempt %d, because: %s\n", attempt, why.ToString().c_str());
  };
  return client.Attend(header, inputs, outputs, call);
}

// A fault of this machine that the caller could not have avoided.
int FailedHere(const absl::Status& error) {
  Misused(error);
  return kExitFailure;
}

int RunAttend(const AttendOptions& options, const ClientOptions& client_options) {
  absl::StatusOr<AttendFile> input = OpenAttendFile(options.in, *TensorLayoutNamed(options.layout));
  if (!input.ok()) return Misused(input.status());
  v1::AttendHeader header;
  *header.mutable_spec() = input->spec;
  absl::Status status =
      ApplyRequestOptions(options.request, *header.mutable_spec(), *header.mutable_options());
  if (!status.ok()) return Misused(status);
  const absl::StatusOr<ExtrasFiles> extras =
      OpenExtras(options.request.extras, *header.mutable_spec(), input->inputs);
  if (!extras.ok()) return Misused(extras.status());
  header.mutable_options()->set_return_lse(true);
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(client_options);
  if (!client.ok()) return Misused(client.status());
  absl::StatusOr<std::unique_ptr<SafetensorsWriter>> output = CreateOutput(options, header.spec());
  if (!output.ok()) return Misused(output.status());

  const AttendOutputs outputs{(*output)->bytes(0), (*output)->bytes(1)};
  const absl::StatusOr<AttendResult> result =
      Call(options, header, input->inputs, outputs, **client);
  if (!result.ok()) return Failed(result.status(), client_options);

  AttendReport report{header.spec(), *result, {}};
  if (options.verify) {
    report.verification =
        Verify(header.spec(), result->statistics.plan().layout(), input->inputs,
               {outputs.out, outputs.lse, options.request.extras.lse_without_sinks});
  }
  const bool wrong = report.verification.has_value() && !report.verification->ok();
  if (!wrong) {
    status = (*output)->Commit();
    if (!status.ok()) return FailedHere(status);
  }
  std::printf("%s\n", options.json ? ReportJson(report).dump().c_str()
                                   : ReportText(report, options.out).c_str());
  if (report.verification.has_value() && !wrong && !report.verification->compared()) {
    std::fprintf(
        stderr,
        "ringctl: nothing could be compared: the inputs are not finite in any row that was "
        "looked at; %s was written\n",
        options.out.c_str());
    return kExitWrong;
  }
  if (!wrong) return kExitOk;
  std::fprintf(stderr, "ringctl: the answer is wrong: %s\nringctl: %s was not written\n",
               WorstText(*report.verification).c_str(), options.out.c_str());
  return kExitWrong;
}

}  // namespace

void AddAttendCommand(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<AttendOptions>();
  CLI::App* command = app.add_subcommand("attend", "Compute attention over the tensors of a file");
  command->add_option("IN", options->in, "Safetensors file with q, k and v")->required();
  command->add_option("--out", options->out, "Safetensors file to write: out and lse")
      ->type_name("FILE")
      ->required();
  command->add_option("--layout", options->layout, "Order of the tensors' dimensions")
      ->check(CLI::IsMember(TensorLayoutNames()))
      ->capture_default_str();
  AddRequestOptions(*command, options->request);
  command->add_option("--deadline", options->deadline_seconds, "Seconds for all attempts together")
      ->check(SecondsRange())
      ->capture_default_str();
  command
      ->add_option("--retries", options->retries,
                   "Further attempts after a lost worker or where the server is busy")
      ->check(CLI::Range(0, kMaxRetries))
      ->capture_default_str();
  AddWaitForReady(*command, options->wait_seconds);
  command->add_flag("--verify", options->verify,
                    "Compute rows again, in fp64, and compare: exit code 6 where they differ");
  command->add_flag("--json", options->json, "One JSON object");
  command->callback([options, &invocation] {
    invocation.run = [options, &invocation] { return RunAttend(*options, invocation.client); };
  });
}

}  // namespace ringserve
