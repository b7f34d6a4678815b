// What a machine's facts mean, and the commands that mend what is missing. Pure.
#pragma once

#include <vector>

#include "glimpse/doctor.h"

namespace glimpse {

[[nodiscard]] std::vector<Finding> diagnose(const MachineReport& report);

}  // namespace glimpse
