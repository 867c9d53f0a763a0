// How server and worker processes log: one line per event on stderr, as text or as one JSON object.
// Messages are written as "event key=value ..."; what they say is their authors' business. Line
// breaks, other control characters and bytes that are not UTF-8 are escaped: a stranger's words
// cannot forge a line.
#pragma once

#include <string>

namespace ringserve {

struct LogOptions {
  std::string format = "text";  // or "json"
  std::string level = "info";   // trace, debug, info, warn, error, off
};

// Makes spdlog's default logger obey `options`, and gRPC and protobuf log through it: their errors
// are warnings. Once, before any thread logs.
void StartLog(const LogOptions& options);

}  // namespace ringserve
