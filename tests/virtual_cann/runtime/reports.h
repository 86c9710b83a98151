// SPDX-License-Identifier: Apache-2.0
// The machine's reports of kernel launches: the last 1000, and, with VIRTUAL_CANN_REPORT, a line of JSON each in a
// file.
#pragma once

#include <string>

namespace virtual_cann {

void keep_report(const std::string& json);

}  // namespace virtual_cann
