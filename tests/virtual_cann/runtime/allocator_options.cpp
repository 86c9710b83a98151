// SPDX-License-Identifier: Apache-2.0
// Lets torch_npu live beside a torch that was built for CUDA. From torch 2.10 on, an allocator registers the names of
// its options, and torch refuses a second one with a name of the first ("Duplicated key"). torch_npu is made for a
// torch without CUDA, but most package indexes have no such build. Nothing here has a GPU, so its allocator's names are
// taken back before torch_npu registers: this library is initialised before torch_npu's, which needs it, and after
// torch's.
#include <dlfcn.h>

#include <string>
#include <unordered_set>

namespace {

using Keys = std::unordered_set<std::string>;

// c10::CachingAllocator::AcceleratorAllocatorConfig::getMutableKeys() of newer versions, and its static variable, of
// which a process has one, where it is inline.
constexpr char kGetKeys[] = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig14getMutableKeysB5cxx11Ev";
constexpr char kKeys[] = "_ZZN3c1016CachingAllocator26AcceleratorAllocatorConfig14getMutableKeysB5cxx11EvE4keys";

[[gnu::constructor]] void forget_the_options_of_cuda() {
  void* const cuda = dlopen("libc10_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (cuda == nullptr) {
    return;
  }
  if (void* const get = dlsym(cuda, kGetKeys)) {
    reinterpret_cast<Keys& (*)()>(get)().clear();
  } else if (void* const keys = dlsym(cuda, kKeys)) {
    static_cast<Keys*>(keys)->clear();
  }
  dlclose(cuda);
}

}  // namespace
