// SPDX-License-Identifier: Apache-2.0
// The compiler's 16-bit float. On aarch64, g++ names it _Float16 only from version 13 on.
#pragma once

namespace virtual_cann {

#if defined(__aarch64__)
using Half = __fp16;
#else
using Half = _Float16;
#endif

}  // namespace virtual_cann
