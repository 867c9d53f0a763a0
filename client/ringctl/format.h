// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace ringserve {

std::string BytesText(uint64_t bytes);    // "512 B", "8.4 MiB"
std::string SecondsText(double seconds);  // "0.585 s", "12.3 s"; "850 us" below a millisecond
std::string ErrorText(double error);      // "3.1e-07"

}  // namespace ringserve
