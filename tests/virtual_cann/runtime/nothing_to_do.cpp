// SPDX-License-Identifier: Apache-2.0
// Functions that correctly do nothing: the virtual CANN has no profiler and no dumps, and these options choose between
// modes that it does not have.
#include "acl/acl.h"
#include "acl/acl_dump.h"
#include "acl/acl_op_compiler.h"
#include "profiling/aprof_pub.h"

extern "C" {

// No profiler is attached.
uint64_t MsprofGetHashId(const char*, size_t) { return 0; }
int32_t MsprofRegisterCallback(uint32_t, ProfCommandHandle) { return 0; }
int32_t MsprofReportAdditionalInfo(uint32_t, const VOID_PTR, uint32_t) { return 0; }
int32_t MsprofReportApi(uint32_t, const MsprofApi*) { return 0; }
int32_t MsprofReportCompactInfo(uint32_t, const VOID_PTR, uint32_t) { return 0; }
uint64_t MsprofSysCycleTime() { return 0; }

// No log file; errors are reported where they happen.
void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}

// No operators are compiled.
aclError aclSetCompileopt(aclCompileOpt, const char*) { return ACL_SUCCESS; }

// Infinities and NaN are always kept, in the mode that torch_npu sets on these chips.
aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return ACL_SUCCESS; }

// Tasks have no time limit.
aclError aclrtSetOpExecuteTimeOut(uint32_t) { return ACL_SUCCESS; }
aclError aclrtSetOpExecuteTimeOutV2(uint64_t wanted, uint64_t* actual) {
  if (actual != nullptr) *actual = wanted;
  return ACL_SUCCESS;
}
aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }

}  // extern "C"
