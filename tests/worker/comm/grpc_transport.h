// GrpcCommunicator as an implementation under test: one server per rank, as a worker has it.
#pragma once

#include "tests/worker/comm/ranks.h"

namespace ringserve::test {

// `listen`: as a worker's --listen.
Implementation GrpcOver(const std::string& name, const std::string& listen);

// With certificates made for the occasion.
Implementation GrpcOverTls();

}  // namespace ringserve::test
