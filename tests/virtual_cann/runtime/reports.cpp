// SPDX-License-Identifier: Apache-2.0
#include "reports.h"

#include <deque>
#include <fstream>
#include <mutex>

#include "errors.h"
#include "settings.h"

namespace virtual_cann {
namespace {

constexpr size_t kKept = 1000;

struct Reports {
  std::mutex mutex;
  std::deque<std::string> kept;
};

Reports& reports() {
  static auto* all = new Reports;
  return *all;
}

}  // namespace

void keep_report(const std::string& json) {
  std::lock_guard lock(reports().mutex);
  reports().kept.push_back(json);
  if (reports().kept.size() > kKept) reports().kept.pop_front();
  const std::string& path = settings().report_file;
  if (path.empty()) return;
  std::ofstream file(path, std::ios::app);
  if (!(file << json << std::endl)) {
    throw Error(ACL_ERROR_WRITE_FILE, "VIRTUAL_CANN_REPORT: cannot write to " + path);
  }
}

}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

// A JSON array, oldest first; valid until this thread's next call.
const char* virtual_cann_reports() {
  thread_local std::string array;
  std::lock_guard lock(reports().mutex);
  array = "[";
  for (const std::string& report : reports().kept) array += (array.size() > 1 ? ",\n" : "") + report;
  array += "]";
  return array.c_str();
}

void virtual_cann_clear_reports() {
  std::lock_guard lock(reports().mutex);
  reports().kept.clear();
}

}  // extern "C"
