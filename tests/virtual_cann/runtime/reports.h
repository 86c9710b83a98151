// SPDX-License-Identifier: Apache-2.0
// The machine's launch reports: the last 1000 are kept; VIRTUAL_CANN_REPORT adds each as a line of JSON to a file.
#pragma once

#include <string>

namespace virtual_cann {

void keep_report(const std::string& json);

}  // namespace virtual_cann
