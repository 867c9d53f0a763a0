// What a worker in good health says of itself.
#pragma once

#include <cstdint>
#include <string>

#include "proto/protocol.h"
#include "ringserve/v1/cluster.pb.h"

namespace ringserve::test {

inline v1::Hello MakeHello(const std::string& address, uint64_t memory_bytes = uint64_t{1} << 30) {
  v1::Hello hello;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_address(address);
  hello.set_device("cpu");
  hello.set_threads(2);
  hello.set_memory_bytes(memory_bytes);
  hello.set_version("1.2.3");
  hello.set_pid(4711);
  hello.set_libtorch("2.15.0");
  return hello;
}

}  // namespace ringserve::test
