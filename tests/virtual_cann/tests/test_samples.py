# SPDX-License-Identifier: Apache-2.0
"""The sample kernels: their results are right to rounding, at every tail, and they break no rule."""

from __future__ import annotations

import ctypes
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor
from virtual_cann import kernels
from virtual_cann.prepare import prepare

SOURCES = {name: Path(__file__).parent / "kernels" / f"{name}.asc" for name in ("add", "log_softmax")}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OLDER_FLAGS = (
    "-xcce", "--cce-soc-version=Ascend910B2", "--cce-soc-core-type=VecCore", "--cce-auto-sync", "-std=c++17",
    "-DTILING_KEY_VAR=0",  # otherwise each unit defines g_tilingKey
)  # fmt: skip
OLDER_LIBRARIES = ("-lruntime", "-lascendcl", "-lstdc++")
ADD_TILE = 16 * 1024  # bytes
LOG_SOFTMAX_TILE = 8192  # elements
INF = float("inf")

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("samples")
    kernels.acl()
    with ThreadPoolExecutor(2) as pool:
        loaded = pool.map(lambda name: kernels.compile_kernels(SOURCES[name], folder / f"{name}.so"), SOURCES)
        return dict(zip(SOURCES, loaded, strict=True))


def run(library: ctypes.CDLL, name: str, blocks: int, tensors: list[Tensor], *sizes: object, offset: int = 0) -> Tensor:
    """The last of the tensors after the launch. Each begins `offset` elements into an allocation of its own."""
    dtype, step = tensors[0].dtype, tensors[0].element_size()
    padded = [torch.cat([torch.zeros(offset, dtype=dtype), tensor.flatten()]) for tensor in tensors]
    launcher = library[f"launch_{name}_{str(dtype).removeprefix('torch.')}"]
    with ExitStack() as stack:
        pointers = [stack.enter_context(kernels.on_device(tensor)) for tensor in padded]
        shifted = [ctypes.c_void_p(pointer.value + offset * step) for pointer in pointers]
        outcome = kernels.launch(launcher, blocks, *shifted, *sizes)
    assert outcome.report["violations"] == []
    assert outcome.code == 0
    assert torch.equal(padded[-1][:offset], torch.zeros(offset, dtype=dtype))
    return padded[-1][offset:].view(tensors[-1].shape)


def add(libraries: dict[str, ctypes.CDLL], x: Tensor, y: Tensor, blocks: int = 2, offset: int = 0) -> Tensor:
    z = torch.full_like(x, float("nan"))
    return run(libraries["add"], "add", blocks, [x, y, z], ctypes.c_uint64(x.numel()), offset=offset)


def log_softmax(libraries: dict[str, ctypes.CDLL], x: Tensor, blocks: int = 2, offset: int = 0) -> Tensor:
    y = torch.full_like(x, float("nan"))
    return run(libraries["log_softmax"], "log_softmax", blocks, [x, y], *x.shape, offset=offset)


def assert_is_log_softmax(y: Tensor, x: Tensor) -> None:
    """Checks y against float64, with a bound on rounding errors.

    In units of 2^-24, the rounding of one fp32 operation. Directly: x - max, and that minus log(sum), which is y. In
    the sum: x - max again, as the exponent, weighted by its share of the sum and so below 16; exp and ln, 2 each; 8
    additions of the tree over a tile and 6 over the lanes; 3 operations for each further tile. Then y is rounded to its
    dtype.
    """
    truth = x.double().log_softmax(1)
    assert torch.equal(y.isnan(), truth.isnan())
    assert torch.equal(y == -INF, truth == -INF)
    finite = truth.isfinite()
    tiles = x.shape[1] // LOG_SOFTMAX_TILE
    from_max = (x.double().amax(1, keepdim=True) - x.double())[finite]
    truth, got = truth[finite], y[finite].double()
    bound = 2**-24 * (from_max + truth.abs() + 16 + 4 + 14 + 3 * tiles)
    if y.dtype != torch.float32:
        info = torch.finfo(y.dtype)
        exponent = torch.frexp(torch.maximum(truth.abs(), got.abs()).clamp_min(info.smallest_normal)).exponent - 1
        bound += info.eps / 2 * torch.exp2(exponent.double())
    error = (got - truth).abs()
    assert (error <= bound).all(), f"error {error.max().item():.3g}, bound {bound[error.argmax()].item():.3g}"


@every_dtype
@pytest.mark.parametrize("first", range(1, 201, 50))
def test_every_tail_length(libraries: dict[str, ctypes.CDLL], dtype: torch.dtype, first: int) -> None:
    torch.manual_seed(first)
    for length in range(first, first + 50):
        x, y = torch.randn(2, length).mul(4).to(dtype)
        assert torch.equal(add(libraries, x, y), x + y)
        rows = torch.randn(3, length).mul(4).to(dtype)
        assert_is_log_softmax(log_softmax(libraries, rows), rows)


@every_dtype
@pytest.mark.parametrize("blocks", [1, 3, 48])
@pytest.mark.parametrize("over", [-1, 0, 1, 37])
def test_addition_around_the_edges_of_tiles(
    libraries: dict[str, ctypes.CDLL], dtype: torch.dtype, blocks: int, over: int
) -> None:
    x, y = torch.randn(2, 4 * ADD_TILE // dtype.itemsize + over).to(dtype)
    assert torch.equal(add(libraries, x, y, blocks), x + y)


@every_dtype
@pytest.mark.parametrize(
    ("rows", "cols", "blocks"),
    [
        (2, LOG_SOFTMAX_TILE - 1, 2),
        (2, LOG_SOFTMAX_TILE, 2),
        (2, LOG_SOFTMAX_TILE + 1, 2),
        (3, 2 * LOG_SOFTMAX_TILE + 97, 2),
        (1, 5 * LOG_SOFTMAX_TILE + 8111, 1),
        (5, 1009, 48),  # fewer rows than cores
        (97, 127, 48),
        (13, 7919, 4),
        (401, 10, 48),
        (7, 1, 2),
    ],
)
def test_shapes(libraries: dict[str, ctypes.CDLL], dtype: torch.dtype, rows: int, cols: int, blocks: int) -> None:
    x = torch.randn(rows, cols).mul(3).to(dtype)
    assert_is_log_softmax(log_softmax(libraries, x, blocks), x)


@every_dtype
def test_no_elements(libraries: dict[str, ctypes.CDLL], dtype: torch.dtype) -> None:
    assert add(libraries, *torch.empty(2, 0, dtype=dtype)).numel() == 0
    for shape in ((0, 10), (4, 0)):
        assert log_softmax(libraries, torch.empty(shape, dtype=dtype)).shape == shape


@every_dtype
@pytest.mark.parametrize("offset", [1, 3, 17])
def test_an_unaligned_start_in_gm(libraries: dict[str, ctypes.CDLL], dtype: torch.dtype, offset: int) -> None:
    x, y = torch.randn(2, 3001).to(dtype)
    assert torch.equal(add(libraries, x, y, offset=offset), x + y)
    rows = torch.randn(5, 333).to(dtype)
    assert_is_log_softmax(log_softmax(libraries, rows, offset=offset), rows)


@every_dtype
def test_masked_logits(libraries: dict[str, ctypes.CDLL], dtype: torch.dtype) -> None:
    x = torch.randn(6, LOG_SOFTMAX_TILE + 300).to(dtype)
    x[0, 5] = -INF
    x[1, :LOG_SOFTMAX_TILE] = -INF  # the whole of the first tile
    x[2, LOG_SOFTMAX_TILE:] = -INF  # the whole of the second
    x[3, 1:] = -INF
    x[4] = -INF  # all -inf: NaN, as in torch
    x[5, ::64] = -INF  # all elements of one lane
    assert_is_log_softmax(log_softmax(libraries, x), x)


@every_dtype
@pytest.mark.parametrize("level", [1e4, -1e4])
def test_large_logits(libraries: dict[str, ctypes.CDLL], dtype: torch.dtype, level: float) -> None:
    x = (torch.randn(3, 9001) * 5 + level).to(dtype)
    assert_is_log_softmax(log_softmax(libraries, x), x)
    x[:, ::2] = -level
    assert_is_log_softmax(log_softmax(libraries, x), x)


@pytest.mark.parametrize("layout", [8.3, 9.1])
def test_the_older_flags_compile_the_same_sources(tmp_path: Path, layout: int) -> None:
    """-xcce, on both layouts; all other tests compile with the newer flags."""
    tree = prepare(layout)
    library = tmp_path / "samples.so"
    includes = [f"-I{tree.home}/compiler/tikcpp/tikcfw{sub}" for sub in ("", "/impl", "/interface")]
    libraries = (f"-L{tree.home}/lib64", *OLDER_LIBRARIES)
    flags = (*OLDER_FLAGS, "-O0", "-shared", "-fPIC", *includes)
    command = [tree.bisheng, *flags, *SOURCES.values(), "-o", library, *libraries]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""
    kernels.acl()
    samples = dict.fromkeys(SOURCES, ctypes.CDLL(str(library)))
    x, y = torch.randn(2, 3, 77)
    assert torch.equal(add(samples, x, y), x + y)
    assert_is_log_softmax(log_softmax(samples, x), x)
