// SPDX-License-Identifier: Apache-2.0
// The compiler's float of 16 bits. For aarch64, g++ calls it _Float16 from version 13 on only.
#pragma once

namespace virtual_cann {

#if defined(__aarch64__)
using Half = __fp16;
#else
using Half = _Float16;
#endif

}  // namespace virtual_cann
