// SPDX-License-Identifier: Apache-2.0
// Functions for which doing nothing is the truth: nobody profiles or dumps here, and the options choose between ways of
// working that the virtual CANN does not have.
#include "acl/acl.h"
#include "acl/acl_dump.h"
#include "acl/acl_op_compiler.h"
#include "profiling/aprof_pub.h"

extern "C" {

// No profiler listens.
uint64_t MsprofGetHashId(const char*, size_t) { return 0; }
int32_t MsprofRegisterCallback(uint32_t, ProfCommandHandle) { return 0; }
int32_t MsprofReportAdditionalInfo(uint32_t, const VOID_PTR, uint32_t) { return 0; }
int32_t MsprofReportApi(uint32_t, const MsprofApi*) { return 0; }
int32_t MsprofReportCompactInfo(uint32_t, const VOID_PTR, uint32_t) { return 0; }
uint64_t MsprofSysCycleTime() { return 0; }

// No log file; errors are reported where they happen.
void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}

// No operator is compiled.
aclError aclSetCompileopt(aclCompileOpt, const char*) { return ACL_SUCCESS; }

// Infinities and NaN are always kept (the mode that torch_npu sets on these chips).
aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return ACL_SUCCESS; }

// No task is stopped for the time it takes.
aclError aclrtSetOpExecuteTimeOut(uint32_t) { return ACL_SUCCESS; }
aclError aclrtSetOpExecuteTimeOutV2(uint64_t wanted, uint64_t* actual) {
  if (actual != nullptr) *actual = wanted;
  return ACL_SUCCESS;
}
aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }

}  // extern "C"
