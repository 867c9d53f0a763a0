// What a platform sees of processes: health checks, metrics, and what commands print.
#pragma once

#include <map>
#include <string>

namespace ringserve::test {

// "SERVING", "NOT_SERVING", or why there is no answer. Plaintext.
std::string HealthOf(const std::string& address, const std::string& service = "");

// What a scrape of /metrics says: the value of each series, named as "name{label=\"value\"}".
// Empty: nothing was served.
std::map<std::string, double> Scrape(const std::string& address);

// What is served under `path`, with its HTTP headers.
std::string Get(const std::string& address, const std::string& path);

// What a command prints, on both streams, and how it ends.
struct Output {
  std::string text;
  int exit = -1;
};

Output OutputOf(const std::string& command);

}  // namespace ringserve::test
