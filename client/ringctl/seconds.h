// Options of ringctl that take seconds.
#pragma once

#include <chrono>

#include <CLI/CLI.hpp>

namespace ringserve {

// Adds --wait-for-ready, from 0, which is not to wait. `seconds` outlives the parsing.
void AddWaitForReady(CLI::App& command, double& seconds);

// From 0.001 to a million. (CLI::Range lets NaN pass.)
CLI::Validator SecondsRange();

// Rounded up: what is asked for is waited for.
std::chrono::milliseconds Milliseconds(double seconds);

}  // namespace ringserve
