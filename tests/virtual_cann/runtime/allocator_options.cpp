// SPDX-License-Identifier: Apache-2.0
// Lets torch_npu run beside a torch that was built for CUDA. From torch 2.10 on, an allocator registers the names of
// its options, and torch refuses a second allocator with one of the same names ("Duplicated key"). torch_npu is made
// for a torch without CUDA, but most package indexes have no such build. There is no GPU here, so the CUDA allocator's
// names are removed before torch_npu registers its own: this library is initialised before torch_npu's, which depends
// on it, and after torch's.
#include <dlfcn.h>

#include <string>
#include <unordered_set>

namespace {

using Keys = std::unordered_set<std::string>;

// The function c10::CachingAllocator::AcceleratorAllocatorConfig::getMutableKeys() of newer versions of torch; and its
// static variable, of which a process has only one where the function is inline.
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
