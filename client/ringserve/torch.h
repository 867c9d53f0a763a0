// PyTorch programs without a change of their model: while a scope lives, the calls of
// at::scaled_dot_product_attention on its thread are computed by the service, those of TorchScript
// modules included. Part of ringserve_torch, which needs LibTorch; the rest of the client does not.
//
//   std::shared_ptr<ringserve::Client> client =
//       *ringserve::Client::Connect({.server = "127.0.0.1:7070"});
//   ringserve::ContextParallel scope(client);
//   at::Tensor y = module.forward({x}).toTensor();
//
// Arguments mean what they mean in PyTorch. A boolean attn_mask, or one of 0 and -inf, that is made
// of bands travels as those; any other as a bias. A bias of float32 beside 16-bit tensors that does
// not fit into their type makes the call one of float32.
//
// Tensors that require a gradient get it: the backward pass asks the same service, and may do so
// after the scope has ended. What cannot be served throws: dropout, nested, sparse, quantised,
// complex and integer tensors, devices other than CPU, an attn_mask that requires a gradient,
// gradients of gradients (create_graph), forward mode.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "absl/status/status.h"
#include "ringserve/client.h"
#include "ringserve/v1/attention.pb.h"

namespace ringserve {

class AttentionService;

struct ContextParallelOptions {
  // None, one, or one per batch row: hold beside what a call says by is_causal and attn_mask.
  std::vector<v1::Mask> masks;
  // Balancer, rotate method, number of workers and so on. Backward passes, which have no pass-Q,
  // let the service choose in its place. return_lse and lse_without_sinks are the scope's own and
  // stay false.
  v1::AttentionOptions attention;
  CallOptions call;
  // What cannot be served runs here instead of throwing, which a warning says once. Not together
  // with `masks`, of which the local computation knows nothing.
  bool local_fallback = false;
};

// Thrown by calls of at::scaled_dot_product_attention, and by backward passes through them.
// status(): UNIMPLEMENTED for what cannot be served, INVALID_ARGUMENT for what PyTorch refuses,
// too, or the scope's masks do not allow, else as Client::Attend and Client::AttendBackward.
// TorchScript wraps it into an exception of its own, with the same words.
class ContextParallelError : public std::runtime_error {
 public:
  explicit ContextParallelError(absl::Status status);
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

// What was served. Thread safe.
class ServedCalls {
 public:
  virtual ~ServedCalls() = default;
  virtual int64_t calls() const = 0;                             // forward
  virtual int64_t backward_calls() const = 0;                    // of backward passes through those
  virtual std::optional<v1::Statistics> statistics() const = 0;  // of the last of each
  virtual std::optional<v1::Statistics> backward_statistics() const = 0;
};

// A scope: ends on the thread where it began, after those that began in it. Scopes nest, the
// innermost serves. Other threads are not affected, but tasks that this one starts through LibTorch
// (fork in TorchScript, at::launch, at::ThreadLocalState) take the scope along, as the
// recomputation in a backward pass that begins in it does.
class ContextParallel {
 public:
  // Throws ContextParallelError, INVALID_ARGUMENT, where the options contradict each other.
  explicit ContextParallel(std::shared_ptr<Client> client, ContextParallelOptions options = {});
  ~ContextParallel();
  ContextParallel(const ContextParallel&) = delete;
  ContextParallel& operator=(const ContextParallel&) = delete;

  int64_t calls() const;
  int64_t backward_calls() const;
  std::optional<v1::Statistics> statistics() const;
  std::optional<v1::Statistics> backward_statistics() const;

 private:
  struct Entered;
  std::shared_ptr<AttentionService> service_;
  std::unique_ptr<Entered> entered_;
};

// The same for every thread of the process, where no scope serves. Counted: each call of Disable
// takes back the last Enable that is left, and the one before serves again. Thread safe; calls that
// are under way end where they began. Enable throws as ContextParallel does, Disable throws
// FAILED_PRECONDITION where nothing is enabled.
std::shared_ptr<const ServedCalls> EnableContextParallelDispatcher(
    std::shared_ptr<Client> client, ContextParallelOptions options = {});
void DisableContextParallelDispatcher();

}  // namespace ringserve
