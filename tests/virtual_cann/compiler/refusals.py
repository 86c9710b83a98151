# SPDX-License-Identifier: Apache-2.0
"""Forms of the command line that a release of bisheng does not know, and those that VIRTUAL_CANN_REFUSES adds to them.

Nobody here has every release of CANN. With these, a build that tries one form after the other can be tested against
compilers that accept only the last form, or that accept a small probe and fail on the real sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

VARIABLE = "VIRTUAL_CANN_REFUSES"

FORMS = {
    "asc": "-x asc and .asc",
    "asc-dirs": "to add directories and libraries for -x asc",
    "xcce-npu-arch": "--npu-arch beside -xcce",
    "soc": "--cce-soc-version",
    "vec": "--cce-aicore-arch=dav-c220-vec",
    "several-units": "several device sources in one command that links",
    "fatobj-link": "--cce-fatobj-link",
}
LIMITS = {
    "units": "device sources in one command",
    "bytes": "bytes in a device source",
    "link-units": "sources and objects in a link, after they were compiled",
}


@dataclass(frozen=True)
class Refusals:
    forms: frozenset[str] = frozenset()
    limits: Mapping[str, int] = field(default_factory=dict)

    def exceeded(self, limit: str, count: int) -> str | None:
        """The error text for a count above the limit; None if it is within."""
        most = self.limits.get(limit)
        if most is None or count <= most:
            return None
        return f"{count} {LIMITS[limit]}: {VARIABLE} allows {most}"


def parse(text: str, of_release: frozenset[str]) -> Refusals:
    """The refusals of a VIRTUAL_CANN_REFUSES value and of the release; raises ValueError for an unknown word."""
    forms, limits = set(of_release), {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        limit = re.fullmatch(r"([a-z-]+)>(\d+)", word)
        if word in FORMS:
            forms.add(word)
        elif limit and limit[1] in LIMITS:
            limits[limit[1]] = int(limit[2])
        else:
            known = ", ".join((*FORMS, *(f"{name}>N" for name in LIMITS)))
            raise ValueError(f"{VARIABLE} has '{word}': expected a comma list of {known}")
    return Refusals(frozenset(forms), limits)
