# SPDX-License-Identifier: Apache-2.0
"""The backward kernels on the virtual NPU: right to rounding against float64, and no rule is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from backward_cases import DTYPES, OUTPUTS, RELATIVE, SMALLEST, Backward, assert_right, backward_in, fuzz, inputs_of
from backward_npu import expected

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
FUZZ = 250


@pytest.fixture(scope="module")
def backward(tmp_path_factory: pytest.TempPathFactory) -> Backward:
    return backward_in(tmp_path_factory.mktemp("backward"))


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 7, 10, 63, 64, 240, 241, 248, 249, 320, 333, 640, 641, 2048, 5003, 20_011])
def test_classes(backward: Backward, dtype: torch.dtype, classes: int) -> None:
    for rows in (1, 5):
        inputs = inputs_of(rows, classes, dtype)
        assert_right(backward(inputs), inputs)


@pytest.mark.parametrize("classes", [10, 1009])
@pytest.mark.parametrize("rows", [0, 1, 40, 47, 48, 49, 97])
def test_rows(backward: Backward, rows: int, classes: int) -> None:
    inputs = inputs_of(rows, classes)
    assert_right(backward(inputs), inputs)


def test_more_rows_than_one_core_has_in_a_tile_or_group(backward: Backward) -> None:
    for rows, classes in ((2100, 3), (150, 260), (150, 645)):
        inputs = inputs_of(rows, classes)
        assert_right(backward(inputs, cores=1), inputs)


@every_dtype
@pytest.mark.parametrize("over", [-1, 0, 1, 63, 65])
def test_the_edges_of_tiles(backward: Backward, dtype: torch.dtype, over: int) -> None:
    inputs = inputs_of(1, 3 * backward(inputs_of(1, 200_000, dtype)).plan.tile_columns + over, dtype, ignored=0)
    assert_right(backward(inputs, cores=1), inputs)
    assert_right(backward(inputs, cores=5), inputs)


OPTIONS = {
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "weight_and_smoothing": {"weight": True, "label_smoothing": 0.3},
    "z_loss": {"z_loss": 0.01},
    "scale": {"logit_scale": 0.7},
    "softcap": {"softcap": 5.0},
    "large_softcap": {"softcap": 50.0},
    "softcap_and_scale": {"softcap": 5.0, "logit_scale": 1.3},
    "all": {"weight": True, "label_smoothing": 0.2, "z_loss": 0.02, "softcap": 5.0, "logit_scale": 0.9},
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(20, 10), (3, 2503)], ids=["narrow", "wide"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(backward: Backward, options: str, shape: tuple[int, int], reduction: str) -> None:
    outputs = ("loss", "z_loss") if "z_loss" in OPTIONS[options] else ("loss",)
    for dtype in DTYPES:
        inputs = inputs_of(*shape, dtype, outputs, reduction=reduction, **OPTIONS[options])
        assert_right(backward(inputs), inputs)


@pytest.mark.parametrize("shape", [(20, 10), (20, 333), (3, 2503)], ids=["narrow", "chunked", "wide"])
@pytest.mark.parametrize("options", [{}, OPTIONS["all"]], ids=["plain", "all"])
@pytest.mark.parametrize("outputs", [(), *((name,) for name in OUTPUTS), OUTPUTS], ids="-".join)
def test_gradients(
    backward: Backward, outputs: tuple[str, ...], options: dict[str, object], shape: tuple[int, int]
) -> None:
    for dtype in DTYPES:
        inputs = inputs_of(*shape, dtype, outputs, **options)
        assert_right(backward(inputs), inputs)


def test_gradients_of_every_dtype_and_of_one_element(backward: Backward) -> None:
    for dtype in DTYPES:
        for shape in ((9, 10), (2, 300)):
            inputs = inputs_of(*shape, outputs=("loss", "z_loss", "lse", "entropy"), z_loss=0.1)
            vectors = {name: getattr(inputs, name).to(dtype) for name in ("loss", "z_loss", "lse", "entropy")}
            inputs = replace(inputs, **vectors)
            assert_right(backward(inputs), inputs)
            inputs = replace(inputs, **{name: vector[0] for name, vector in vectors.items()})
            assert_right(backward(inputs), inputs)


@every_dtype
@pytest.mark.parametrize(("offset", "gap"), [(1, 0), (3, 5), (0, 1)])
def test_rows_begin_anywhere(backward: Backward, dtype: torch.dtype, offset: int, gap: int) -> None:
    for rows, classes in ((30, 13), (3, 777)):
        inputs = inputs_of(rows, classes, dtype, ("loss", "log_prob"))
        assert_right(backward(inputs, offset=offset, gap=gap), inputs)


@every_dtype
def test_in_place_gives_the_same_bits(backward: Backward, dtype: torch.dtype) -> None:
    for rows, classes in ((30, 13), (2, 40_000), (5, 3001)):
        inputs = inputs_of(rows, classes, dtype)
        assert torch.equal(backward(inputs, in_place=True).gradient, backward(inputs).gradient)


@pytest.mark.parametrize("shape", [(123, 10), (123, 333), (3, 30_011)], ids=["narrow", "chunked", "wide"])
def test_any_number_of_cores_gives_the_same_bits(backward: Backward, shape: tuple[int, int]) -> None:
    for dtype in DTYPES:
        inputs = inputs_of(*shape, dtype, OUTPUTS, **OPTIONS["all"])
        first, *others = (backward(inputs, cores=cores).gradient for cores in (1, 7, 20, 40, 48))
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("target_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(12, 10), (12, 1031)], ids=["narrow", "wide"])
def test_invalid_targets_give_nan_in_their_rows(
    backward: Backward, shape: tuple[int, int], target_dtype: torch.dtype
) -> None:
    rows, classes = shape
    invalid = [-1, classes, 2**31 - 1, -(2**31)]
    if target_dtype is torch.int64:
        invalid += [2**32, 2**32 + 3, -(2**40) + 1, 2**63 - 1]
    inputs = inputs_of(rows, classes, target_dtype=target_dtype, ignored=0)
    truth = expected(inputs)
    for row, target in enumerate(invalid):
        inputs.target[row] = target
        truth[row] = torch.nan
    assert_right(backward(inputs), inputs, truth)


@pytest.mark.parametrize("ignore_index", [-100, 3, 2**31 + 3, -(2**40)])
@pytest.mark.parametrize("shape", [(12, 10), (12, 333), (12, 1031)], ids=["narrow", "chunked", "wide"])
def test_ignored_rows_are_zero_whatever_they_hold(
    backward: Backward, shape: tuple[int, int], ignore_index: int
) -> None:
    for dtype in DTYPES:
        inputs = inputs_of(*shape, dtype, ignore_index=ignore_index)
        inputs.target[::3] = ignore_index
        truth = expected(inputs)
        inputs.logits[::3] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0]).repeat(shape[1])[: shape[1]].to(dtype)
        result = backward(inputs)
        assert (result.gradient[::3].view(torch.int16) == 0).all()
        assert_right(result, inputs, truth)


@pytest.mark.parametrize("outputs", [("loss", "lse"), ("loss", "entropy"), ("lse", "entropy")], ids="-".join)
@pytest.mark.parametrize("shape", [(12, 10), (12, 333), (12, 1031)], ids=["narrow", "chunked", "wide"])
def test_ignored_rows_whose_gradients_of_lse_and_entropy_are_0_are_zero(
    backward: Backward, shape: tuple[int, int], outputs: tuple[str, ...]
) -> None:
    for dtype in DTYPES:
        inputs = inputs_of(*shape, dtype, outputs, ignored=0)
        inputs.target[::2] = -100
        of_others = [gradient for gradient in (inputs.lse, inputs.entropy) if gradient is not None]
        for gradient in of_others:
            gradient[::4] = 0
            gradient[1] = 0  # a row that is not ignored
        truth = expected(inputs)
        poison = torch.tensor([torch.nan, torch.inf, -torch.inf, 0]).repeat(shape[1])[: shape[1]].to(dtype)
        inputs.logits[::4] = poison
        result = backward(inputs)
        assert (result.gradient[::4].view(torch.int16) == 0).all()
        assert_right(result, inputs, truth)
        of_others[-1][0] = torch.nan
        assert backward(inputs).gradient[0].isnan().all()


def test_an_ignored_index_of_64_bits_is_none_of_32(backward: Backward) -> None:
    for shape in ((12, 10), (12, 1031)):
        inputs = inputs_of(*shape, target_dtype=torch.int32, ignored=0, ignore_index=2**32 + 3)
        inputs.target[::2] = 3
        assert_right(backward(inputs), inputs)


def test_ignored_rows_are_not_read(backward: Backward) -> None:
    inputs = inputs_of(64, 4096, ignored=0)
    inputs.target[::2] = -100
    read = backward(inputs).counters["gm_bytes_read"]
    assert read <= 1.01 * 32 * 4096 * 4


@pytest.mark.parametrize("shape", [(12, 10), (12, 1031)], ids=["narrow", "wide"])
def test_nothing_flows(backward: Backward, shape: tuple[int, int]) -> None:
    inputs = inputs_of(*shape, outputs=())
    inputs.logits[:] = torch.nan
    result = backward(inputs)
    assert (result.gradient == 0).all()
    assert result.counters["gm_bytes_read"] == 0


@pytest.mark.parametrize("shape", [(12, 10), (12, 1031)], ids=["narrow", "wide"])
def test_weights_matter_to_the_gradient_of_the_loss_alone(backward: Backward, shape: tuple[int, int]) -> None:
    inputs = inputs_of(*shape, outputs=("lse",), weight=True, ignored=0)
    assert inputs.weight is not None
    inputs.weight[inputs.target[0]] = torch.inf
    assert_right(backward(inputs), inputs, expected(replace(inputs, weight=None)))


@pytest.mark.parametrize("shape", [(12, 10), (12, 1031)], ids=["narrow", "wide"])
@pytest.mark.parametrize("outputs", [("loss",), ("lse",), ("loss", "lse", "entropy")], ids="-".join)
def test_masked_classes_have_gradient_0(backward: Backward, outputs: tuple[str, ...], shape: tuple[int, int]) -> None:
    """As if the classes were absent. A masked target has gradient -t, where t is the row's gradient of loss."""
    for dtype in DTYPES:
        inputs = inputs_of(*shape, dtype, outputs, ignored=0)
        inputs.target[:] = inputs.target // 2 * 2
        compact = replace(inputs, logits=inputs.logits[:, ::2], target=inputs.target // 2)
        truth = torch.zeros(shape, dtype=torch.float64)
        truth[:, ::2] = expected(compact)
        inputs.logits[:, 1::2] = -torch.inf
        assert_right(backward(inputs), inputs, truth)
        if "loss" in outputs and len(outputs) == 1:
            inputs.target[0] = 1
            truth[0, ::2] = inputs.loss[0].double() * torch.softmax(inputs.logits[0, ::2].double(), 0)
            truth[0, 1] = -inputs.loss[0].double()
            assert_right(backward(inputs), inputs, truth)


@pytest.mark.parametrize("shape", [(12, 10), (4, 1031)], ids=["narrow", "wide"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_in_its_row(backward: Backward, shape: tuple[int, int], value: float) -> None:
    inputs = inputs_of(*shape, ignored=0)
    truth = expected(inputs)
    inputs.logits[1, 3], truth[1] = value, torch.nan
    inputs.logits[2, inputs.target[2]], truth[2] = value, torch.nan
    inputs.logits[3], truth[3] = -torch.inf, torch.nan
    assert_right(backward(inputs), inputs, truth)


@every_dtype
@pytest.mark.parametrize("classes", [10, 1031])
def test_the_true_class_of_confident_rows(backward: Backward, dtype: torch.dtype, classes: int) -> None:
    """The gradient p - 1 of the true class is accurate, even where p is close to 1."""
    inputs = inputs_of(8, classes, dtype, ignored=0)
    inputs.logits[:] = 0
    rows = torch.arange(8)
    inputs.logits[rows, inputs.target] = torch.linspace(1, 10, 8).add(torch.tensor(classes).log()).to(dtype)
    got = backward(inputs).gradient[rows, inputs.target].double()
    truth = expected(inputs)[rows, inputs.target]
    assert ((got - truth).abs() <= RELATIVE[dtype] * truth.abs() + SMALLEST[dtype]).all()


def test_from_log_prob(backward: Backward) -> None:
    """The drop-in's case: log_prob in place of logits, and row_stats of zeros."""
    for dtype in DTYPES:
        for shape in ((20, 10), (3, 2503)):
            inputs = inputs_of(*shape, dtype)
            inputs.logits[:] = torch.log_softmax(inputs.logits.float(), 1).to(dtype)
            got = backward(inputs, stats=(torch.zeros(shape[0]), torch.zeros(shape[0])))
            p = inputs.logits.double().exp()
            truth = inputs.loss[:, None].double() * (
                p - torch.nn.functional.one_hot(inputs.target.clamp_min(0), shape[1])
            )
            truth[inputs.target < 0] = 0
            assert_right(got, inputs, truth)


def test_fuzz(backward: Backward) -> None:
    fuzz(backward, range(FUZZ))


@pytest.mark.parametrize("shape", [(2, 10), (2, 600)], ids=["narrow", "wide"])
def test_rows_beyond_2_to_the_31(backward: Backward, shape: tuple[int, int]) -> None:
    """Gaps of 2^32 bytes, more than a copy's stride holds. They are never touched, so they take no memory."""
    inputs = inputs_of(*shape, torch.bfloat16, ("loss", "log_prob"))
    assert_right(backward(inputs, gap=2**31 + 8), inputs)
