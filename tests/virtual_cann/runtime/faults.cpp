// SPDX-License-Identifier: Apache-2.0
#include "faults.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <sstream>
#include <string>

#include "errors.h"
#include "settings.h"

namespace virtual_cann {
namespace {

constexpr uint64_t kMost = 1000000000;

struct Faults {
  uint64_t launch = 0;  // 0: never
  uint64_t refuse = 0;
  uint64_t lost = 0;
  uint64_t malloc = 0;
  std::chrono::microseconds slow{0};
};

std::mutex mutex;
Faults faults;
uint64_t launches, allocations;
std::map<int, uint64_t> tasks;

[[noreturn]] void reject(const std::string& item) {
  throw Error(ACL_ERROR_INVALID_PARAM,
              "VIRTUAL_CANN_FAULTS: \"" + item +
                  "\": expected a comma list of launch=N, refuse=N, lost=N, malloc=N, slow=Nms "
                  "or slow=Nus, each at most once, N from 1 to " +
                  std::to_string(kMost));
}

// The number at the text's beginning; `unit` gets the rest.
uint64_t number(const std::string& text, const std::string& item, std::string* unit) {
  size_t digits = text.find_first_not_of("0123456789");
  if (digits == std::string::npos) digits = text.size();
  if (digits == 0 || digits > 10) reject(item);
  uint64_t value = std::stoull(text.substr(0, digits));
  if (value == 0 || value > kMost) reject(item);
  *unit = text.substr(digits);
  return value;
}

Faults parse(const std::string& text) {
  Faults parsed;
  std::map<std::string, uint64_t*> counts = {
      {"launch", &parsed.launch}, {"refuse", &parsed.refuse}, {"lost", &parsed.lost}, {"malloc", &parsed.malloc}};
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    size_t equals = item.find('=');
    if (equals == std::string::npos) reject(item);
    std::string name = item.substr(0, equals);
    std::string unit;
    uint64_t value = number(item.substr(equals + 1), item, &unit);
    auto count = counts.find(name);
    if (count != counts.end() && unit.empty() && *count->second == 0) {
      *count->second = value;
    } else if (name == "slow" && (unit == "ms" || unit == "us") && parsed.slow.count() == 0) {
      parsed.slow = std::chrono::microseconds(unit == "ms" ? value * 1000 : value);
    } else {
      reject(item);
    }
  }
  if (!text.empty() && text.back() == ',') reject("");
  return parsed;
}

}  // namespace

void set_faults(const char* text) {
  Faults parsed = parse(text);
  std::lock_guard lock(mutex);
  faults = parsed;
  launches = allocations = 0;
  tasks.clear();
}

LaunchFault fault_of_launch() {
  std::lock_guard lock(mutex);
  ++launches;
  if (launches == faults.refuse) return LaunchFault::refused;
  return launches == faults.launch ? LaunchFault::fails : LaunchFault::none;
}

bool allocation_must_fail() {
  std::lock_guard lock(mutex);
  return ++allocations >= faults.malloc && faults.malloc != 0;
}

bool task_loses_device(int device) {
  std::lock_guard lock(mutex);
  return tasks[device]++ == faults.lost && faults.lost != 0;
}

std::chrono::microseconds task_delay() {
  std::lock_guard lock(mutex);
  return faults.slow;
}

}  // namespace virtual_cann

extern "C" int virtual_cann_set_faults(const char* text) {
  using namespace virtual_cann;
  return api(__func__, [&] {
    settings();  // the environment's faults first, so that they cannot replace these
    set_faults(&out(text, "text"));
  });
}
