#include "client/ringctl/status_json.h"

#include <utility>

namespace ringserve {

using nlohmann::ordered_json;

ordered_json StatusJson(const v1::GetClusterResponse& cluster) {
  ordered_json workers = ordered_json::array();
  for (const v1::Worker& worker : cluster.workers()) {
    workers.push_back(ordered_json{{"id", worker.id()},
                                   {"address", worker.address()},
                                   {"device", worker.device()},
                                   {"threads", worker.threads()},
                                   {"memory_bytes", worker.memory_bytes()},
                                   {"reserved_bytes", worker.reserved_bytes()},
                                   {"silent_seconds", worker.silent_seconds()},
                                   {"job", worker.job()},
                                   {"pid", worker.pid()},
                                   {"version", worker.version()},
                                   {"libtorch", worker.libtorch()},
                                   {"device_name", worker.device_name()},
                                   {"driver", worker.driver()},
                                   {"cuda", worker.cuda()},
                                   {"nccl", worker.nccl()}});
  }
  const v1::Limits& limits = cluster.limits();
  const v1::Measurements& measured = cluster.measurements();
  return {{"version", cluster.version()},
          {"epoch", cluster.epoch()},
          {"draining", cluster.draining()},
          {"queued_jobs", cluster.queued_jobs()},
          {"unfinished_jobs", cluster.unfinished_jobs()},
          {"workers", std::move(workers)},
          {"limits",
           {{"max_queued_jobs", limits.max_queued_jobs()},
            {"max_header_bytes", limits.max_header_bytes()},
            {"max_message_bytes", limits.max_message_bytes()},
            {"max_deadline_seconds", limits.max_deadline_seconds()},
            {"min_rate_bytes_per_second", limits.min_rate_bytes_per_second()},
            {"max_bias_bytes", limits.max_bias_bytes()}}},
          {"measurements",
           {{"pairs_per_second", measured.pairs_per_second()},
            {"link_bytes_per_second", measured.link_bytes_per_second()},
            {"link_latency_seconds", measured.link_latency_seconds()},
            {"rank_overhead_seconds", measured.rank_overhead_seconds()}}}};
}

}  // namespace ringserve
