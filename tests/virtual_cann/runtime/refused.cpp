// SPDX-License-Identifier: Apache-2.0
// Functions that torch_npu links, and that the virtual CANN does not model. Each returns an error with its own name in
// the message. Functions that torch_npu looks up at run time are simply missing: it reports their names itself.
#include "errors.h"

using namespace virtual_cann;

extern "C" {

// Device binaries: here kernels are host code, see bin/bisheng.
aclError aclrtBinaryLoadFromData(const void*, size_t, const aclrtBinaryLoadOptions*, aclrtBinHandle*) {
  return refuse(__func__);
}
aclError aclrtBinaryGetFunction(const aclrtBinHandle, const char*, aclrtFuncHandle*) { return refuse(__func__); }
aclError aclrtGetFunctionAddr(aclrtFuncHandle, void**, void**) { return refuse(__func__); }

// Virtual and shared memory: PYTORCH_NPU_ALLOC_CONF=expandable_segments, and memory between processes.
aclError aclrtReserveMemAddress(void**, size_t, size_t, void*, uint64_t) { return refuse(__func__); }
aclError aclrtReleaseMemAddress(void*) { return refuse(__func__); }
aclError aclrtMallocPhysical(aclrtDrvMemHandle*, size_t, const aclrtPhysicalMemProp*, uint64_t) {
  return refuse(__func__);
}
aclError aclrtFreePhysical(aclrtDrvMemHandle) { return refuse(__func__); }
aclError aclrtMapMem(void*, size_t, size_t, aclrtDrvMemHandle, uint64_t) { return refuse(__func__); }
aclError aclrtUnmapMem(void*) { return refuse(__func__); }
aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle, aclrtMemHandleType, uint64_t, uint64_t*) {
  return refuse(__func__);
}
aclError aclrtMemImportFromShareableHandle(uint64_t, int32_t, aclrtDrvMemHandle*) { return refuse(__func__); }
aclError aclrtMemSetPidToShareableHandle(uint64_t, int32_t*, size_t) { return refuse(__func__); }
aclError aclrtDeviceGetBareTgid(int32_t*) { return refuse(__func__); }

// Stream callbacks, and dumps of operators' tensors.
aclError aclrtProcessReport(int32_t) { return refuse(__func__); }
aclError aclmdlInitDump() { return refuse(__func__); }
aclError aclmdlSetDump(const char*) { return refuse(__func__); }
aclError aclmdlFinalizeDump() { return refuse(__func__); }

// The runtime below ACL; torch_npu's own header declares these. In C, only the names matter.
int rtDevBinaryRegister(const void*, void**) { return refuse(__func__); }
int rtFunctionRegister(void*, const void*, const char*, const void*, uint32_t) { return refuse(__func__); }
int rtGetC2cCtrlAddr(uint64_t*, uint32_t*) { return refuse(__func__); }
int rtKernelLaunch(const void*, uint32_t, void*, uint32_t, void*, void*) { return refuse(__func__); }

// Operators. A weak definition gives way to one that computes, where there is one. Without it torch_npu would fall back
// to aclopCompileAndExecute, which can only refuse later, on another thread.
#define X(name)                                                                               \
  __attribute__((weak)) int aclnn##name##GetWorkspaceSize() { return refuse("aclnn" #name); } \
  __attribute__((weak)) int aclnn##name() { return refuse("aclnn" #name); }
#include "operator_names.h"

}  // extern "C"
