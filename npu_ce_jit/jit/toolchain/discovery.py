# SPDX-License-Identifier: Apache-2.0
"""The build tools of this machine, and the hardware to build for. Reads files and PATH; starts no process."""

import importlib.util
import mmap
import platform
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from npu_ce_jit.errors import ToolchainError
from npu_ce_jit.jit.toolchain.finding import Finding
from npu_ce_jit.settings import Settings

_X86 = ("x86_64", "AMD64")
_ARM = ("aarch64", "arm64")
_ISA_OF_CAPABILITY = {"AVX512": "avx512", "AVX2": "avx2"}
_ISA_ORDER = ("baseline", "avx2", "avx512")
# By the finding, the size up to which outputs ask for huge pages, in MiB; None is any size.
_WHERE_REPORTED = "up to 192 MiB"
HUGE_PAGES_MIB = {"yes": None, _WHERE_REPORTED: 192, "no": 0}
_CPU_INFO = Path("/proc/cpuinfo")
# The lines that -march=native depends on; the rest of cpuinfo differs by core and over time.
_CPU_LINES = (
    r"^((?:vendor_id|cpu family|model|stepping|flags|isa|Features|CPU (?:implementer|architecture|variant|part))\s*:.*)"
)
_PAGE_REPORTING_ORDER = "/sys/module/page_reporting/parameters/page_reporting_order"


class Toolchain:
    """The facts of a machine, each with its evidence: the attributes are all `Finding`.

    Each is looked up when it is first used, and then kept: a warm import uses few of them, and a later build finds what
    was installed meanwhile. None raises for what is absent.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def system(self) -> Finding:
        return Finding("system", platform.system(), "the running kernel")

    @cached_property
    def machine(self) -> Finding:
        return Finding("machine", platform.machine(), "the running kernel")

    @cached_property
    def cpu_isa(self) -> Finding:
        return _find_cpu_isa(self._settings)

    @cached_property
    def cpu(self) -> Finding:
        return _find_cpu()

    @cached_property
    def huge_pages(self) -> Finding:
        return _find_huge_pages(self._settings)

    @cached_property
    def cxx(self) -> Finding:
        """May hold more than one word ("ccache g++"); `cxx_command` splits it."""
        from npu_ce_jit.jit.toolchain import build_tools  # a warm import needs none of them

        return build_tools.find_cxx(self._settings)

    @cached_property
    def ninja(self) -> Finding:
        from npu_ce_jit.jit.toolchain import build_tools

        return build_tools.find_ninja(self._settings, _package_dir("ninja"))

    @cached_property
    def torch_version(self) -> Finding:
        return Finding("torch", str(torch.__version__), "torch.__version__")

    @cached_property
    def torch_git(self) -> Finding:
        return Finding("torch git", str(torch.version.git_version), "torch.version.git_version")

    @cached_property
    def torch_dir(self) -> Finding:
        return Finding("torch directory", str(Path(torch.__file__).parent), "torch.__file__")

    @cached_property
    def torch_npu_version(self) -> Finding:
        return _find_torch_npu_version(self.torch_npu_dir)

    @cached_property
    def torch_npu_dir(self) -> Finding:
        """Found without importing torch_npu, which starts the device runtime."""
        package_dir = _package_dir("torch_npu")
        if package_dir is None:
            series = ".".join(torch.__version__.split(".")[:2])
            return Finding(
                "torch_npu directory", None, "no module torch_npu",
                f"On an NPU machine, with torch {series}: pip install 'torch_npu=={series}.*'",
            )  # fmt: skip
        return Finding("torch_npu directory", str(package_dir), "its import path")

    @cached_property
    def cann_home(self) -> Finding:
        from npu_ce_jit.jit.toolchain import cann  # most machines have no NPU

        return cann.find_cann_home(self._settings)

    @cached_property
    def cann_version(self) -> Finding:
        return self._cann_version_and_build[0]

    @cached_property
    def cann_build(self) -> Finding:
        return self._cann_version_and_build[1]

    @cached_property
    def _cann_version_and_build(self) -> tuple[Finding, Finding]:
        from npu_ce_jit.jit.toolchain import cann

        return cann.find_cann_version(self.cann_home)

    @cached_property
    def npu_architecture(self) -> Finding:
        """The family that the chips of a machine share, not the chip: asking for that would make a device context."""
        if self.cann_home.value is None:
            return self.cann_home._replace(name="NPU architecture")
        return Finding("NPU architecture", "dav-2201", "Atlas A2 and A3, the only NPUs supported")

    @cached_property
    def bisheng(self) -> Finding:
        from npu_ce_jit.jit.toolchain import bisheng

        return bisheng.find_bisheng(self._settings, self.cann_home)

    @cached_property
    def lld(self) -> Finding:
        from npu_ce_jit.jit.toolchain import bisheng

        return bisheng.find_lld(self._settings, self.bisheng)

    @property
    def cxx_command(self) -> list[str]:
        import shlex  # not imported by torch; only a build needs it

        return shlex.split(self.cxx.require())

    @property
    def has_npu_software(self) -> bool:
        """Whether somebody set this machine up for an NPU."""
        return self.torch_npu_version.value is not None and self.cann_home.value is not None

    def facts(self) -> dict[str, Finding]:
        """All findings, by attribute."""
        return {name: getattr(self, name) for name in _FACTS}

    def replace(self, **facts: Finding) -> "Toolchain":
        """A copy with these facts replaced."""
        other = Toolchain(self._settings)
        vars(other).update(vars(self) | facts)
        return other

    def require_build(self, needs: "Callable[[Toolchain], tuple[Finding, ...]]") -> None:
        """Raises ToolchainError, with what to do, unless a build that needs these facts can be made here."""
        if self.system.value != "Linux":
            raise ToolchainError(
                f"The C++ kernels are built on Linux only; this is {self.system.value}.",
                "The reference implementation computes the same numbers, slower; NPU_CE_JIT_BUILD=never says "
                "that you know.",
            )
        for fact in needs(self):
            fact.require()


_FACTS = tuple(
    name for name, attribute in vars(Toolchain).items() if isinstance(attribute, cached_property) and name[0] != "_"
)


def _find_cpu_isa(settings: Settings) -> Finding:
    machine, wanted = platform.machine(), settings.cpu_isa
    if machine in _ARM:
        best, where = "neon", f"every {machine} CPU has it"
        possible: tuple[str, ...] = ("baseline", "neon")
    elif machine in _X86:
        capability = torch.backends.cpu.get_cpu_capability()
        best, where = _ISA_OF_CAPABILITY.get(capability, "baseline"), f"torch calls this CPU {capability}"
        possible = _ISA_ORDER[: _ISA_ORDER.index(best) + 1]
    else:
        best, where, possible = "baseline", f"no vector code for {machine}", ("baseline",)
    if wanted is None:
        return Finding("CPU instructions", best, where)
    if wanted in possible:
        return Finding("CPU instructions", wanted, "NPU_CE_JIT_CPU_ISA")
    return Finding(
        "CPU instructions", None, f"NPU_CE_JIT_CPU_ISA={wanted}, but this CPU can run {', '.join(possible)} ({where})",
        f"Set NPU_CE_JIT_CPU_ISA to one of {', '.join(possible)}, or unset it.",
    )  # fmt: skip


def _find_cpu() -> Finding:
    """The CPU's model, and a digest of what -march=native depends on, for the cache key."""
    import hashlib

    try:
        text = _CPU_INFO.read_text("utf-8", "replace")
    except OSError as error:
        return Finding("CPU", f"that of {platform.node()}", f"{_CPU_INFO}: {error}")
    lines = "\n".join(sorted(set(re.findall(_CPU_LINES, text, re.MULTILINE))))
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    digest = hashlib.sha256(lines.encode()).hexdigest()[:12]
    return Finding("CPU", f"{name[1] if name else platform.machine()} {digest}", str(_CPU_INFO))


def _find_huge_pages(settings: Settings) -> Finding:
    """Which outputs ask for huge pages: a key of HUGE_PAGES_MIB. A virtual machine that reports free memory to its host
    loses the huge pages of a block that stays free for two seconds, and getting one back costs more than 512 small ones
    do (docs/design.md, 4). On aarch64, kernels with pages of 16 or 64 KiB have huge pages of 32 or 512 MiB: a first
    write to one would move other memory out of the way."""
    name = "huge pages"
    if settings.huge_pages is not None:
        return Finding(name, "yes" if settings.huge_pages else "no", "NPU_CE_JIT_HUGE_PAGES")
    if mmap.PAGESIZE > 4096:
        return Finding(name, "no", f"pages have {mmap.PAGESIZE >> 10} KiB here, and huge ones at least 32 MiB")
    try:
        with open(_PAGE_REPORTING_ORDER, encoding="utf-8") as file:
            order = int(file.read())
    except (OSError, ValueError):  # a kernel that reports none
        order = -1
    if order >= 0:
        return Finding(name, _WHERE_REPORTED, f"{_PAGE_REPORTING_ORDER} is {order}: free blocks go back to the host")
    return Finding(name, "yes", "no free blocks go back to a host")


def _find_torch_npu_version(directory: Finding) -> Finding:
    if directory.value is None:
        return directory._replace(name="torch_npu")
    version_file = Path(directory.value, "version.py")
    try:
        text = version_file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Finding("torch_npu", None, f"{version_file}: {error}", "Install torch_npu again.")
    facts = dict(re.findall(r"^(__version__|git_version)\s*(?::[^=]*)?=\s*['\"]([^'\"]+)", text, re.MULTILINE))
    if "__version__" not in facts:
        return Finding("torch_npu", None, f"{version_file} states no __version__", "Install torch_npu again.")
    git = facts.get("git_version", "")[:12]
    return Finding("torch_npu", facts["__version__"] + (f" git {git}" if git else ""), str(version_file))


def _package_dir(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a finder that failed, or a stub module without a spec
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None
