#include "tests/integration/process_facts.h"

#include <arpa/inet.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace ringserve::test {
namespace {

namespace fs = std::filesystem;

std::string ProcPath(pid_t pid, const char* name) { return absl::StrCat("/proc/", pid, "/", name); }

// What the links in /proc/PID/fd point to: "socket:[12345]", "/dev/null", ...
std::vector<std::string> OpenFileNames(pid_t pid) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(ProcPath(pid, "fd"), error), end; !error && entry != end;
       entry.increment(error)) {
    const fs::path target = fs::read_symlink(entry->path(), error);
    names.push_back(error ? std::string() : target.string());
    error.clear();
  }
  return names;
}

// A field of /proc/PID/status.
uint64_t StatusField(pid_t pid, const std::string& name) {
  std::ifstream file(ProcPath(pid, "status"));
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, name + ":")) return std::stoull(line.substr(name.size() + 1));
  }
  return 0;
}

// As /proc/net/tcp and tcp6 write addresses: 32-bit words in the machine's order, in hexadecimal.
std::string ReadableHost(const std::string& hex) {
  uint32_t words[4] = {};
  for (size_t i = 0; i < hex.size() / 8; ++i) {
    words[i] = static_cast<uint32_t>(std::stoul(hex.substr(8 * i, 8), nullptr, 16));
  }
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(hex.size() == 8 ? AF_INET : AF_INET6, words, text, sizeof(text));
  const std::string host = text;
  return absl::StartsWith(host, "::ffff:") ? host.substr(strlen("::ffff:")) : host;
}

}  // namespace

int OpenFiles(pid_t pid) { return static_cast<int>(OpenFileNames(pid).size()); }

uint64_t ResidentBytes(pid_t pid) { return StatusField(pid, "VmRSS") * 1024; }

int Threads(pid_t pid) { return static_cast<int>(StatusField(pid, "Threads")); }

std::vector<std::string> ListeningHosts(pid_t pid) {
  std::set<std::string> sockets;
  for (const std::string& name : OpenFileNames(pid)) sockets.insert(name);
  std::vector<std::string> hosts;
  for (const char* table : {"net/tcp", "net/tcp6"}) {
    std::ifstream file(ProcPath(pid, table));
    std::string line;
    std::getline(file, line);  // headings
    while (std::getline(file, line)) {
      char local[64] = {}, state[8] = {};
      unsigned long inode = 0;
      const int fields =
          std::sscanf(line.c_str(), "%*s %63[0-9A-F]:%*s %*s %7s %*s %*s %*s %*s %*s %lu", local,
                      state, &inode);
      constexpr char kListen[] = "0A";
      if (fields == 3 && std::strcmp(state, kListen) == 0 &&
          sockets.count(absl::StrCat("socket:[", inode, "]")) > 0) {
        hosts.push_back(ReadableHost(local));
      }
    }
  }
  return hosts;
}

std::set<std::string> SharedMemory() {
  std::set<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry("/dev/shm", error), end; !error && entry != end;
       entry.increment(error)) {
    names.insert(entry->path().filename().string());
  }
  return names;
}

}  // namespace ringserve::test
