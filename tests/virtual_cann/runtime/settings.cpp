// SPDX-License-Identifier: Apache-2.0
#include "settings.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

#include "errors.h"
#include "faults.h"

namespace virtual_cann {
namespace {

std::string variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

[[noreturn]] void reject(const char* name, const std::string& value, const std::string& expected) {
  throw Error(ACL_ERROR_INVALID_PARAM, std::string(name) + "=" + value + ": expected " + expected);
}

uint64_t integer(const char* name, const std::string& value, uint64_t most) {
  char* end = nullptr;
  errno = 0;
  unsigned long long number = std::strtoull(value.c_str(), &end, 10);
  bool digits = !value.empty() && value.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || errno != 0 || number == 0 || number > most) {
    reject(name, value, "an integer from 1 to " + std::to_string(most));
  }
  return number;
}

Settings read() {
  Settings settings;
  std::string soc = variable("VIRTUAL_CANN_SOC", "Ascend910B2");
  settings.hardware = hardware_named(soc);
  if (settings.hardware == nullptr) {
    std::string names;
    for (const std::string& name : hardware_names()) names += (names.empty() ? "" : ", ") + name;
    reject("VIRTUAL_CANN_SOC", soc, "one of " + names);
  }
  settings.devices = static_cast<int>(integer("VIRTUAL_CANN_DEVICES", variable("VIRTUAL_CANN_DEVICES", "1"), 16));
  uint64_t host_bytes = uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE));
  uint64_t sensible = std::min(settings.hardware->hbm_bytes, host_bytes / 2 / uint64_t(settings.devices));
  std::string memory = variable("VIRTUAL_CANN_MEMORY", "");
  settings.memory_bytes =
      memory.empty() ? sensible : integer("VIRTUAL_CANN_MEMORY", memory, settings.hardware->hbm_bytes);
  std::string auto_sync = variable("VIRTUAL_CANN_AUTO_SYNC", "0");
  if (auto_sync != "0" && auto_sync != "1") reject("VIRTUAL_CANN_AUTO_SYNC", auto_sync, "0 or 1");
  settings.auto_sync = auto_sync == "1";
  settings.report_file = variable("VIRTUAL_CANN_REPORT", "");
  set_faults(variable("VIRTUAL_CANN_FAULTS", "").c_str());
  return settings;
}

struct Outcome {
  std::optional<Settings> settings;
  std::optional<Error> error;
};

}  // namespace

const Settings& settings() {
  static const Outcome outcome = [] {
    Outcome outcome;
    try {
      outcome.settings = read();
    } catch (const Error& error) {
      // Some callers drop the first call's error (torch_npu then sees no device), so the reason is also printed.
      std::fprintf(stderr, "[virtual CANN] %s\n", error.what());
      outcome.error = error;
    }
    return outcome;
  }();
  if (outcome.error) throw *outcome.error;
  return *outcome.settings;
}

}  // namespace virtual_cann
