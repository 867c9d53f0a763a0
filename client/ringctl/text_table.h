// Rows of text under each other.
#pragma once

#include <string>
#include <vector>

namespace ringserve {

// Columns as wide as their widest cell; every row has as many, and there is at least one row.
std::string TableText(const std::vector<std::vector<std::string>>& rows);

}  // namespace ringserve
