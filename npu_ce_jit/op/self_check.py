# SPDX-License-Identifier: Apache-2.0
"""Whether fresh kernels compute what they should: the only proof that a compiler's flags were the right ones."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_ce_jit import chips
from npu_ce_jit.errors import SelfCheckError
from npu_ce_jit.op import reference
from npu_ce_jit.op.autograd import OPS
from npu_ce_jit.op.schema import LSE, MEAN, LossTerms

_ROWS, _CLASSES = 3, 70  # no whole number of vectors
_TERMS = LossTerms(MEAN, -100, 0.1, 1e-3, 0.0, 1.0)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # garbage is further off, rounding is not


def chip(device: torch.device) -> str:
    """The name of the chip: what one computes right, another may not."""
    name = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return str(name(device)) if name else device.type


def require_supported_chip(device: torch.device) -> None:
    """Raises ToolchainError for a chip that the kernels are not made for."""
    chips.require_supported(chip(device), "Call .cpu() on the tensors.")


def run(device: torch.device) -> None:
    """Runs forward and backward once in each dtype. Raises SelfCheckError with what was expected and what came.

    Any other error says nothing of the kernels: there was no memory for them, or the device did not work before.
    """
    with torch.no_grad():
        for dtype in _TOLERANCE:
            _check(device, dtype)


def _check(device: torch.device, dtype: torch.dtype) -> None:
    logits = ((torch.arange(_ROWS * _CLASSES) * 0.37).sin() * 4).reshape(_ROWS, _CLASSES).to(dtype)
    target = torch.tensor([0, -100, _CLASSES - 1])
    weight = torch.linspace(0.5, 2.0, _CLASSES)
    expected = _results(reference.forward, reference.backward, logits, target, weight)
    there = [tensor.to(device) for tensor in (logits, target, weight)]
    try:
        got = {name: came.cpu() for name, came in _results(OPS._forward.default, OPS._backward.default, *there).items()}
    except torch.OutOfMemoryError:
        raise
    except Exception as raised:
        raise _failed(device, dtype, f"raised {type(raised).__name__}: {raised}") from raised
    for name, right in expected.items():
        came = got[name]
        error = (came.double() - right.double()).abs()
        allowed = _TOLERANCE[dtype] * right.double().abs().clamp(min=1e-2)
        wrong = ~(error <= allowed)  # NaN is wrong
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            where = f"{name}{list(at)}" if at else name
            raise _failed(device, dtype, f"expected {where} = {right[at].item():.6g}, got {came[at].item():.6g}")


def _results(forward: object, backward: object, logits: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
    assert callable(forward)
    assert callable(backward)
    loss, _, _, lse, _, _, row_stats, denominators = forward(logits, target, weight, *_TERMS, LSE, torch.float32)
    ones = torch.ones_like(loss)
    gradient = backward(ones, None, None, None, None, logits, target, weight, row_stats, None, denominators, *_TERMS)
    return {"loss": loss, "lse": lse, "gradient": gradient}


def _failed(device: torch.device, dtype: torch.dtype, what: str) -> SelfCheckError:
    name = "CPU" if device.type == "cpu" else "NPU"
    return SelfCheckError(
        f"The {name} kernels fail their self-check in {str(dtype).removeprefix('torch.')}: {what}.",
        "They are not used, nor built with the same flags again. Start the program again to have others tried, or call "
        ".cpu(); and report this with the output of `python -m npu_ce_jit doctor`.",
    )
