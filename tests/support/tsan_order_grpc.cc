// Batches, completions and reactors of gRPC. It hands work from thread to thread through lock-free
// queues; a tag names it at both ends.
#include <grpc/grpc.h>
#include <grpcpp/support/server_callback.h>

#include "tests/support/tsan_order.h"

using ringserve::tsan_order::ComesAfter;
using ringserve::tsan_order::ComesBefore;
using ringserve::tsan_order::Next;

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t nops, void* tag,
                                      void* reserved) {
  static auto* const next = Next<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  ComesBefore(tag);
  return next(call, ops, nops, tag, reserved);
}

void grpc_channel_watch_connectivity_state(grpc_channel* channel, grpc_connectivity_state last,
                                           gpr_timespec deadline, grpc_completion_queue* cq,
                                           void* tag) {
  static auto* const next = Next<decltype(grpc_channel_watch_connectivity_state)>(
      "grpc_channel_watch_connectivity_state");
  ComesBefore(tag);
  next(channel, last, deadline, cq, tag);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* cq, gpr_timespec deadline,
                                      void* reserved) {
  static auto* const next =
      Next<decltype(grpc_completion_queue_next)>("grpc_completion_queue_next");
  const grpc_event event = next(cq, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) ComesAfter(event.tag);
  return event;
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* cq, void* tag, gpr_timespec deadline,
                                       void* reserved) {
  static auto* const next =
      Next<decltype(grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  const grpc_event event = next(cq, tag, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) ComesAfter(tag);
  return event;
}

// The reactor's OnCancel runs inside libgrpc++, which then drops its reference to the call; whoever
// drops the last one ends the reactor.
namespace {

class OrderedCancel : public grpc::internal::ServerReactor {
 public:
  OrderedCancel(grpc::internal::ServerReactor* reactor, const void* references)
      : reactor_(reactor), references_(references) {}

  void OnCancel() override {
    reactor_->OnCancel();
    ComesBefore(references_);
    delete this;
  }
  void OnDone() override {}
  bool InternalInlineable() override { return reactor_->InternalInlineable(); }

 private:
  grpc::internal::ServerReactor* const reactor_;
  const void* const references_;
};

}  // namespace

namespace grpc::internal {

void ServerCallbackCall::CallOnCancel(ServerReactor* reactor) {
  static auto* const next = Next<void(ServerCallbackCall*, ServerReactor*)>(
      "_ZN4grpc8internal18ServerCallbackCall12CallOnCancelEPNS0_13ServerReactorE");
  next(this, new OrderedCancel(reactor, &callbacks_outstanding_));
}

void ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  static auto* const next = Next<void(ServerCallbackCall*, bool)>(
      "_ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb");
  ComesAfter(&callbacks_outstanding_);
  next(this, inline_ondone);
}

}  // namespace grpc::internal
