// SPDX-License-Identifier: Apache-2.0
// Queries about a device.
#include <cstring>

#include "devices.h"
#include "memory.h"
#include "settings.h"

namespace virtual_cann {
namespace {

int64_t attribute(aclrtDevAttr name) {
  const Hardware& hardware = *settings().hardware;
  switch (name) {
    case ACL_DEV_ATTR_AICORE_CORE_NUM:
    case ACL_DEV_ATTR_CUBE_CORE_NUM:
      return hardware.cube_cores;
    case ACL_DEV_ATTR_VECTOR_CORE_NUM:
      return hardware.vector_cores;
    case ACL_DEV_ATTR_UBUF_PER_VECTOR_CORE:
      return kUbBytes;
    case ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE:
      return static_cast<int64_t>(settings().memory_bytes);
    case ACL_DEV_ATTR_L2_CACHE_SIZE:
      return static_cast<int64_t>(hardware.l2_bytes);
    case ACL_DEV_ATTR_IS_VIRTUAL:  // means vNPU slicing, not this virtual NPU
      return 0;
    default:
      throw Error(ACL_ERROR_API_NOT_SUPPORT,
                  "the virtual CANN does not know device attribute " + std::to_string(static_cast<int>(name)));
  }
}

}  // namespace
}  // namespace virtual_cann

using namespace virtual_cann;

extern "C" {

const char* aclrtGetSocName() {
  const char* name = nullptr;
  api(__func__, [&] { name = settings().hardware->soc.c_str(); });
  return name;
}

aclError aclrtGetDeviceInfo(uint32_t id, aclrtDevAttr name, int64_t* value) {
  return api(__func__, [&] {
    device(static_cast<int>(id));
    out(value, "value") = attribute(name);
  });
}

aclError aclGetDeviceCapability(uint32_t id, aclDeviceInfo name, int64_t* value) {
  return api(__func__, [&] {
    device(static_cast<int>(id));
    static constexpr aclrtDevAttr kAttributes[] = {ACL_DEV_ATTR_AICORE_CORE_NUM, ACL_DEV_ATTR_VECTOR_CORE_NUM,
                                                   ACL_DEV_ATTR_L2_CACHE_SIZE};
    if (name < ACL_DEVICE_INFO_AI_CORE_NUM || name > ACL_DEVICE_INFO_L2_SIZE) {
      throw Error(ACL_ERROR_INVALID_PARAM, "there is no device capability " + std::to_string(name));
    }
    out(value, "value") = attribute(kAttributes[name]);
  });
}

aclError aclrtGetMemInfo(aclrtMemAttr kind, size_t* free, size_t* total) {
  return api(__func__, [&] {
    if (kind != ACL_HBM_MEM && kind != ACL_HBM_MEM_HUGE && kind != ACL_HBM_MEM_NORMAL) {
      throw Error(ACL_ERROR_API_NOT_SUPPORT, "the virtual CANN has HBM only, and no memory attribute " +
                                                 std::to_string(kind) + "; ask for ACL_HBM_MEM");
    }
    out(total, "total") = settings().memory_bytes;
    out(free, "free") = settings().memory_bytes - bytes_in_use(current_device().id);
  });
}

aclError aclrtDeviceGetUuid(int32_t id, aclrtUuid* uuid) {
  return api(__func__, [&] {
    device(id);
    std::memset(out(uuid, "uuid").bytes, 0, sizeof uuid->bytes);
    uuid->bytes[0] = static_cast<char>(id + 1);
  });
}

// Devices are visible in their own order.
aclError aclrtGetLogicDevIdByUserDevId(const int32_t user, int32_t* const logic) {
  return api(__func__, [&] { out(logic, "logicDevId") = device(user).id; });
}

// All devices' memory is host memory, so every pair has access.
aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t id, int32_t peer) {
  return api(__func__, [&] { out(can, "canAccessPeer") = device(id).id != device(peer).id; });
}

aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t) {
  return api(__func__, [&] { device(peer); });
}

aclError aclGetCannAttribute(aclCannAttr name, int32_t* value) {
  return api(__func__, [&] {
    if (name == ACL_CANN_ATTR_UNDEFINED) throw Error(ACL_ERROR_INVALID_PARAM, "cannAttr is ACL_CANN_ATTR_UNDEFINED");
    out(value, "value") = name != ACL_CANN_ATTR_JIT_COMPILE;  // infinities, NaN and bf16: yes; an operator compiler: no
  });
}

}  // extern "C"
