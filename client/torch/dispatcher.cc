#include "client/torch/dispatcher.h"

#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/ops/scaled_dot_product_attention_native.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/torch/attention_function.h"
#include "client/torch/sdpa_call.h"

namespace ringserve {
namespace {

using at::Tensor;

// LibTorch carries such infos into its tasks, and into backward passes.
constexpr std::string_view kInfoName = "RINGSERVE_CONTEXT_PARALLEL";
constexpr c10::DebugInfoKind kInfo(&kInfoName);

struct ScopeInfo : c10::DebugInfoBase {
  explicit ScopeInfo(std::shared_ptr<AttentionService> service) : service(std::move(service)) {}
  const std::shared_ptr<AttentionService> service;
};

class ProcessServices {
 public:
  void Push(std::shared_ptr<AttentionService> service) {
    absl::MutexLock lock(&mu_);
    services_.push_back(std::move(service));
  }

  bool Pop() {
    absl::MutexLock lock(&mu_);
    if (services_.empty()) return false;
    services_.pop_back();
    return true;
  }

  std::shared_ptr<AttentionService> Last() {
    absl::MutexLock lock(&mu_);
    return services_.empty() ? nullptr : services_.back();
  }

 private:
  absl::Mutex mu_;
  std::vector<std::shared_ptr<AttentionService>> services_ ABSL_GUARDED_BY(mu_);
};

// Lives to the end of the process, as the operator that asks for it does.
ProcessServices& OfTheProcess() {
  static auto* const services = new ProcessServices;
  return *services;
}

std::shared_ptr<AttentionService> CurrentService() {
  if (const auto* info = static_cast<ScopeInfo*>(c10::ThreadLocalDebugInfo::get(kInfo)))
    return info->service;
  return OfTheProcess().Last();
}

Tensor Local(const SdpaArguments& call) {
  return at::native::scaled_dot_product_attention(call.query, call.key, call.value, call.attn_mask,
                                                  call.dropout_p, call.is_causal, call.scale,
                                                  call.enable_gqa);
}

absl::StatusOr<Tensor> Serve(const std::shared_ptr<AttentionService>& service,
                             const SdpaArguments& arguments) {
  const absl::StatusOr<SdpaCall> call = MakeSdpaCall(arguments, service->options());
  if (!call.ok()) return call.status();
  if (!call->nonempty()) return Local(arguments);
  try {
    return Attend(service, *call).reshape(call->out_sizes).to(call->out_type);
  } catch (const ContextParallelError& error) {
    return error.status();
  }
}

// The kernel of aten::scaled_dot_product_attention.
Tensor Sdpa(const Tensor& query, const Tensor& key, const Tensor& value,
            const std::optional<Tensor>& attn_mask, double dropout_p, bool is_causal,
            std::optional<double> scale, bool enable_gqa) {
  const SdpaArguments arguments{query,     key,       value, attn_mask,
                                dropout_p, is_causal, scale, enable_gqa};
  const std::shared_ptr<AttentionService> service = CurrentService();
  if (service == nullptr) return Local(arguments);
  absl::StatusOr<Tensor> out = Serve(service, arguments);
  if (out.ok()) return *std::move(out);
  if (service->FallsBack(out.status())) return Local(arguments);
  throw ContextParallelError(out.status());
}

// Says nothing of the kernel that is replaced.
class Silence : public c10::WarningHandler {
  void process(const c10::Warning& warning) override {}
};

// The operator is implicitly composite: autograd, autocast and tracing hand it down to the one
// kernel for all devices. Ours stands in its place from the first scope on, and calls it where none
// is.
void TakeOver() {
  static const torch::Library registration = [] {
    Silence silence;
    const c10::WarningUtils::WarningHandlerGuard silent(&silence);
    torch::Library library(torch::Library::IMPL, "aten",
                           c10::DispatchKey::CompositeImplicitAutograd, __FILE__, __LINE__);
    library.impl("scaled_dot_product_attention", &Sdpa);
    return library;
  }();
}

}  // namespace

EnteredScope::EnteredScope(std::shared_ptr<AttentionService> service)
    : guard_(kInfo, std::make_shared<ScopeInfo>(std::move(service))) {
  TakeOver();
}

void PushProcessService(std::shared_ptr<AttentionService> service) {
  TakeOver();
  OfTheProcess().Push(std::move(service));
}

bool PopProcessService() { return OfTheProcess().Pop(); }

}  // namespace ringserve
