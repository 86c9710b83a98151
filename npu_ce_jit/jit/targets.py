# SPDX-License-Identifier: Apache-2.0
"""What can be built: the CPU library, the NPU libraries, and the kernels of `npu_ce_jit.board`. They share every step
of a build and no entry of the cache.

So environments with and without CANN share the CPU library, and a broken CANN does not affect it, nor does what breaks
the CPU library affect the NPU's.
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypedDict

from npu_ce_jit._version import __version__
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.jit.toolchain import flags
from npu_ce_jit.jit.toolchain.discovery import HUGE_PAGES_MIB, Toolchain
from npu_ce_jit.jit.toolchain.finding import Finding
from npu_ce_jit.settings import Settings


class Target:
    """One set of libraries: its name, the facts that its bytes depend on, and its sources.

    `compiler` is that of its kernels; `needs` are the tools that a build requires, and are looked up only for a build.
    """

    def __init__(
        self,
        *,
        name: Literal["cpu", "npu", "board"],
        title: str,
        detail: str,
        compiler: Callable[[Toolchain], Finding],
        needs: Callable[[Toolchain], tuple[Finding, ...]],
        facts: tuple[tuple[str, str], ...],
        name_parts: tuple[str, ...],
        sources: Sources,
        switches: Mapping[str, int],
    ) -> None:
        self.name: Final = name
        self.title: Final = title
        self.detail: Final = detail  # what messages say of a build, beside its compiler
        self.compiler: Final = compiler
        self.needs: Final = needs
        self.facts: Final = facts  # everything but the sources that changes the libraries' bytes
        self.name_parts: Final = name_parts  # the facts that an entry's name shows
        self.sources: Final = sources
        self.switches: Final = switches  # functions to call once the library is open, and their int arguments


def cpu_target(settings: Settings, toolchain: Toolchain, sources: Sources) -> Target:
    """Raises ToolchainError where the CPU's instructions are not known."""
    cpu_isa = toolchain.cpu_isa.require()
    facts = (
        *_common_facts(settings, toolchain),
        ("CPU instructions", cpu_isa),
        ("compile flags", " ".join(flags.COMPILE)),
        ("kernel flags", " ".join(flags.OF_ISA[cpu_isa])),
        ("link flags", " ".join(flags.LINK + flags.LIBRARIES)),
    )
    torch = toolchain.torch_version.require()
    huge_pages_mib = HUGE_PAGES_MIB[toolchain.huge_pages.require()]
    return Target(
        name="cpu",
        title="CPU kernels",
        detail=f"{cpu_isa}, torch {torch}",
        compiler=lambda machine: machine.cxx,
        needs=lambda machine: (machine.cpu_isa, machine.cxx, machine.ninja),
        facts=facts,
        name_parts=(f"torch{torch}", toolchain.machine.require(), cpu_isa),
        sources=sources.cpu,
        switches={} if huge_pages_mib is None else {"npu_ce_jit_set_huge_pages": huge_pages_mib},
    )


def npu_target(settings: Settings, toolchain: Toolchain, sources: Sources) -> Target:
    """Raises ToolchainError where there is no torch_npu or no CANN."""
    of_npu = _of_npu(settings, toolchain)
    assert sources.npu is not None, "a package without NPU kernels has no such target"
    return Target(
        name="npu",
        title="NPU kernels",
        sources=sources.npu,
        switches={"npu_ce_jit_set_check_targets": True} if settings.check_targets else {},
        **of_npu,
    )


def board_target(settings: Settings, toolchain: Toolchain, sources: Sources) -> Target:
    """Kernels without glue, whose launchers Python calls by name. Raises ToolchainError as `npu_target` does."""
    return Target(
        name="board",
        title="kernels that ask the chip",
        sources=sources.board,
        switches={},
        **_of_npu(settings, toolchain),
    )


class _OfNpu(TypedDict):
    detail: str
    compiler: Callable[[Toolchain], Finding]
    needs: Callable[[Toolchain], tuple[Finding, ...]]
    facts: tuple[tuple[str, str], ...]
    name_parts: tuple[str, ...]


def _of_npu(settings: Settings, toolchain: Toolchain) -> _OfNpu:
    """What targets for an NPU have in common.

    CANN's own bisheng is not described in the facts, nor is the default C++ compiler: CANN's version covers it, and a
    machine that only runs the kernels may have none.
    """
    torch_npu, _ = toolchain.torch_npu_version.require(), toolchain.cann_home.require()
    from npu_ce_jit.jit.bisheng.flag_sets import FLAG_SETS
    from npu_ce_jit.jit.toolchain.bisheng import bisheng_identity  # most machines have no NPU

    architecture, version = toolchain.npu_architecture.require(), toolchain.cann_version.value or "unknown"
    return {
        "detail": f"{architecture}, CANN {version}, torch_npu {torch_npu.split()[0]}",
        "compiler": lambda machine: machine.bisheng,
        "needs": lambda machine: (machine.bisheng, machine.cxx, machine.ninja, machine.torch_npu_dir),
        "facts": (
            *_common_facts(settings, toolchain),
            ("torch_npu", torch_npu),
            ("CANN", version),
            ("CANN build", toolchain.cann_build.value or "unknown"),
            ("bisheng", bisheng_identity(toolchain.bisheng, toolchain.cann_home)),
            ("NPU architecture", architecture),
            *((f"bisheng flags {flag_set.name}", str(flag_set)) for flag_set in FLAG_SETS),
            ("compile flags", " ".join(flags.NPU_COMPILE)),
            ("link flags", " ".join(flags.NPU_LINK + flags.NPU_LIBRARIES)),
        ),
        "name_parts": (
            f"torch{toolchain.torch_version.require()}",
            toolchain.machine.require(),
            f"cann{version}",
            architecture,
        ),
    }


def _common_facts(settings: Settings, toolchain: Toolchain) -> tuple[tuple[str, str], ...]:
    """The default compiler's version is left out: a machine that only runs the kernels may have none, and asking would
    start a process at each import. The manifest has it. Paths and times are left out because they change no byte. With
    -march=native in CXX, the CPU is a fact: the library depends on it, and machines share home directories."""
    return (
        ("npu_ce_jit", __version__),
        ("torch", toolchain.torch_version.require()),
        ("torch git", toolchain.torch_git.require()),
        ("system", toolchain.system.require()),
        ("machine", toolchain.machine.require()),
        ("CXX", settings.cxx or "default"),
        *((("CPU", toolchain.cpu.require()),) if "=native" in (settings.cxx or "") else ()),
    )
