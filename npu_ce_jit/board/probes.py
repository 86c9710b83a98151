# SPDX-License-Identifier: Apache-2.0
"""The kernels of ascendc/board: built as the loss's are, opened by name, launched on torch_npu's current stream."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.errors import BuildError, LoadError
from npu_ce_jit.jit.cache.entry import Artifact
from npu_ce_jit.jit.loader import find_or_build
from npu_ce_jit.jit.targets import board_target
from npu_ce_jit.session import State

LANES = 256  # the fewest of a vector instruction here: Compare takes whole repeats of 256 bytes
MOST_LANES = 4096
LEFT_ALONE = -55  # what UB holds before; it stays where neither a result nor DataCopyPad writes
PADDING_VALUE = -7
_UNWRITTEN = -77  # what GM holds before a launch
_CAST_COUNT = 64
_SHOWN_BYTES = 64

Launch = Callable[[ctypes.c_void_p], None]
_u32, _u64, _i32 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32


class NoAnswerError(RuntimeError):
    """The chip gave no answer to a question, or an impossible one."""


class Probes:
    """The kernels, open. Raises BuildError or ToolchainError where there are none, LoadError where they do not open."""

    def __init__(self, session: State, device: torch.device) -> None:
        assert session.sources is not None, "a session with an NPU has sources"
        if not session.sources.board.units(".asc"):
            raise BuildError(f"No ascendc/board/ in {session.sources.root_dir}.", "Install npu_ce_jit again.")
        target = board_target(session.settings, session.toolchain, session.sources)
        artifact = find_or_build(
            target, session.settings, session.toolchain, may_build=session.settings.build != "never"
        )
        if artifact is None:
            raise BuildError("They are not built, and NPU_CE_JIT_BUILD=never.", "Unset NPU_CE_JIT_BUILD.")
        self.artifact: Artifact = artifact
        self.device = device
        try:
            self._library = ctypes.CDLL(str(artifact.library))
        except OSError as error:
            raise LoadError(f"The dynamic linker refused {artifact.library}: {error}.", "Report it.") from error
        self._vector_operations = self._names("npu_ce_board_vector_operations")
        self._cast_operations = self._names("npu_ce_board_cast_operations")

    def vector(self, operation: str, a: Tensor, b: Tensor) -> Tensor:
        """The result of one instruction on as many float32 lanes as `a` and `b` have."""
        result = self._unwritten(a.numel(), torch.float32)
        self._vector(operation, a.to(self.device), b.to(self.device), result)(self.stream())
        return _written(result)

    def vector_turns(self, operation: str, lanes: int, turns: int) -> Launch:
        """A launch that issues the instruction `turns` times."""
        a = (torch.rand(lanes) + 0.5).to(self.device)
        offsets = torch.arange(lanes, dtype=torch.int32) * 4
        b = offsets.view(torch.float32) if operation == "Gather" else torch.rand(lanes) + 0.5
        return self._vector(operation, a, b.to(self.device), self._unwritten(lanes, torch.float32), turns)

    def cast(self, operation: str, values: Tensor, dtype: torch.dtype) -> Tensor:
        """At most 64 values, cast by the chip to `dtype`, which is that of the operation."""
        padded = torch.zeros(_CAST_COUNT, dtype=values.dtype)
        padded[: len(values)] = values
        source, result = padded.to(self.device), self._unwritten(_CAST_COUNT, dtype)
        self._call("npu_ce_board_cast", _u32(self._cast_operations.index(operation)), source, result)(self.stream())
        return _written(result)[: len(values)]

    def padded(self, dtype: torch.dtype, count: int, *, is_pad: bool, left: int, right: int) -> Tensor:
        """64 bytes of UB after DataCopyPad has put a block of 1, 2 ... `count` at their front."""
        block = torch.arange(1, count + 1, dtype=dtype).to(self.device)
        result = self._unwritten(_SHOWN_BYTES // dtype.itemsize, dtype)
        numbers = map(_u32, (dtype.itemsize, count, is_pad, left, right))
        self._call("npu_ce_board_pad", block, result, *numbers)(self.stream())
        return _written(result)

    def copy(self, source: Tensor, to: Tensor, piece_bytes: int, *, blocks: int, writes: bool, passes: int) -> Launch:
        """A launch that reads `source` in pieces, `passes` times, and with `writes` copies it to `to`."""
        numbers = (_u64(source.nbytes), *map(_u32, (piece_bytes, writes, passes)))
        return self._call("npu_ce_board_copy", _u32(blocks), source, to, *numbers)

    def empty(self, blocks: int) -> Launch:
        return self._call("npu_ce_board_empty", _u32(blocks))

    def fill_and_read(self, rounds: int) -> list[list[int]]:
        """What the scalar unit reads, in each round, after a launch that has written the round's number there."""
        between = self._unwritten(_CAST_COUNT, torch.int32)
        results = [self._unwritten(_CAST_COUNT, torch.int32) for _ in range(rounds)]
        stream = self.stream()
        for number, result in enumerate(results):
            self._call("npu_ce_board_fill", between, _i32(number))(stream)
            self._call("npu_ce_board_read", between, result)(stream)
        return [_written(result).tolist() for result in results]

    def stream(self) -> ctypes.c_void_p:
        """torch_npu's current stream; reading it first submits all earlier calls to it."""
        return ctypes.c_void_p(torch.get_device_module(self.device).current_stream().npu_stream)

    def _vector(self, operation: str, a: Tensor, b: Tensor, result: Tensor, turns: int = 1) -> Launch:
        number = self._vector_operations.index(operation)
        return self._call("npu_ce_board_vector", _u32(number), a, b, result, _u32(a.numel()), _u32(turns))

    def _call(self, name: str, *arguments: Any) -> Launch:
        """A launch, which keeps its tensors alive."""
        function = self._library[name]
        function.restype = None

        def launch(stream: ctypes.c_void_p) -> None:
            function(stream, *(_pointer(one) if isinstance(one, Tensor) else one for one in arguments))

        return launch

    def _names(self, function: str) -> list[str]:
        names_of = self._library[function]
        names_of.restype = ctypes.c_char_p
        names: bytes = names_of()
        return names.decode().split()

    def _unwritten(self, count: int, dtype: torch.dtype) -> Tensor:
        return torch.full((count,), _UNWRITTEN, dtype=dtype).to(self.device)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


class Time(NamedTuple):
    """Of one launch."""

    on_device: float  # seconds
    on_host: float


def time_of(probes: Probes, launch: Launch, launches: int, behind: Launch | None = None) -> Time:
    """The mean of many launches in a row. Where the device runs `behind` first, the host gets ahead of it."""
    backend = torch.get_device_module(probes.device)
    start, end = (backend.Event(enable_timing=True) for _ in range(2))
    backend.synchronize()
    if behind is not None:
        behind(probes.stream())
    start.record()
    stream = probes.stream()
    began = time.perf_counter()
    for _ in range(launches):
        launch(stream)
    on_host = time.perf_counter() - began
    end.record()
    end.synchronize()
    return Time(start.elapsed_time(end) / 1e3 / launches, on_host / launches)


def _written(result: Tensor) -> Tensor:
    """The result, on the host. Raises NoAnswerError if it is unwritten, since a launch may fail without an error."""
    result = result.cpu()
    if (result == _UNWRITTEN).all():
        raise NoAnswerError("the kernel left its result unwritten")
    return result
