// SPDX-License-Identifier: Apache-2.0
// The options of the process and of its context. Nothing here depends on them (operators are deterministic in every
// mode), but a program must read back the value that it wrote.
#include <map>
#include <mutex>

#include "errors.h"

namespace virtual_cann {
namespace {

class Options {
 public:
  void set(aclSysParamOpt name, int64_t value) {
    std::lock_guard lock(mutex_);
    values_[name] = value;
  }
  int64_t get(aclSysParamOpt name) {
    std::lock_guard lock(mutex_);
    return values_[name];
  }

 private:
  std::mutex mutex_;
  std::map<aclSysParamOpt, int64_t> values_;  // 0 until set
};

Options of_process, of_context;

}  // namespace
}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

aclError aclrtSetSysParamOpt(aclSysParamOpt name, int64_t value) {
  return api(__func__, [&] { of_process.set(name, value); });
}

aclError aclrtGetSysParamOpt(aclSysParamOpt name, int64_t* value) {
  return api(__func__, [&] { out(value, "value") = of_process.get(name); });
}

aclError aclrtCtxSetSysParamOpt(aclSysParamOpt name, int64_t value) {
  return api(__func__, [&] { of_context.set(name, value); });
}

aclError aclrtCtxGetSysParamOpt(aclSysParamOpt name, int64_t* value) {
  return api(__func__, [&] { out(value, "value") = of_context.get(name); });
}

}  // extern "C"
