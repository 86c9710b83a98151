// SPDX-License-Identifier: Apache-2.0
// The older interface for operators: by name, compiled on demand. torch_npu uses it where aclnn lacks an operator.
// Descriptors and attributes must be accepted, so that torch_npu reaches the call with the operator's name, which is
// refused by that name.
#include <vector>

#include "acl/acl_op_compiler.h"
#include "errors.h"

struct aclTensorDesc {
  aclDataType dtype;
  aclFormat format;
  std::vector<int64_t> sizes;
};

struct aclDataBuffer {};
struct aclopAttr {};

using namespace virtual_cann;

extern "C" {

aclError aclopCompileAndExecute(const char* operator_type, int, const aclTensorDesc* const[],
                                const aclDataBuffer* const[], int, const aclTensorDesc* const[], aclDataBuffer* const[],
                                const aclopAttr*, aclopEngineType, aclopCompileType, const char*, aclrtStream) {
  return api(__func__, [&] {
    throw Error(ACL_ERROR_API_NOT_SUPPORT, "the virtual CANN does not implement operator " +
                                               std::string(operator_type) +
                                               "; move the tensor to the CPU for it, or run this on an NPU");
  });
}

aclTensorDesc* aclCreateTensorDesc(aclDataType dtype, int dims, const int64_t* sizes, aclFormat format) {
  return new aclTensorDesc{dtype, format, {sizes, sizes + dims}};
}
void aclDestroyTensorDesc(const aclTensorDesc* description) { delete description; }
aclDataType aclGetTensorDescType(const aclTensorDesc* description) { return description->dtype; }
aclFormat aclGetTensorDescFormat(const aclTensorDesc* description) { return description->format; }
size_t aclGetTensorDescNumDims(const aclTensorDesc* description) { return description->sizes.size(); }

aclError aclGetTensorDescDimV2(const aclTensorDesc* description, size_t dim, int64_t* size) {
  return api(__func__, [&] { out(size, "dimSize") = description->sizes.at(dim); });
}

aclDataBuffer* aclCreateDataBuffer(void*, size_t) { return new aclDataBuffer; }
aclError aclDestroyDataBuffer(const aclDataBuffer* buffer) {
  delete buffer;
  return ACL_SUCCESS;
}

aclopAttr* aclopCreateAttr() { return new aclopAttr; }
void aclopDestroyAttr(const aclopAttr* attributes) { delete attributes; }

// Attributes of an operator that will be refused.
void aclSetTensorDescName(aclTensorDesc*, const char*) {}
aclError aclSetTensorFormat(aclTensorDesc*, aclFormat) { return ACL_SUCCESS; }
aclError aclSetTensorPlaceMent(aclTensorDesc*, aclMemType) { return ACL_SUCCESS; }
aclError aclSetTensorShape(aclTensorDesc*, int, const int64_t*) { return ACL_SUCCESS; }
aclError aclopSetAttrBool(aclopAttr*, const char*, uint8_t) { return ACL_SUCCESS; }
aclError aclopSetAttrDataType(aclopAttr*, const char*, aclDataType) { return ACL_SUCCESS; }
aclError aclopSetAttrFloat(aclopAttr*, const char*, float) { return ACL_SUCCESS; }
aclError aclopSetAttrInt(aclopAttr*, const char*, int64_t) { return ACL_SUCCESS; }
aclError aclopSetAttrString(aclopAttr*, const char*, const char*) { return ACL_SUCCESS; }
aclError aclopSetAttrListBool(aclopAttr*, const char*, int, const uint8_t*) { return ACL_SUCCESS; }
aclError aclopSetAttrListFloat(aclopAttr*, const char*, int, const float*) { return ACL_SUCCESS; }
aclError aclopSetAttrListInt(aclopAttr*, const char*, int, const int64_t*) { return ACL_SUCCESS; }
aclError aclopSetAttrListListInt(aclopAttr*, const char*, int, const int*, const int64_t* const[]) {
  return ACL_SUCCESS;
}

}  // extern "C"
