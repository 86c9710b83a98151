# SPDX-License-Identifier: Apache-2.0
"""`npu_ce_jit.patch.trl`: the function by which trl's trainers score tokens, computed by `linear_cross_entropy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_ce_jit.api.linear_cross_entropy import linear_cross_entropy
from npu_ce_jit.errors import PatchError
from npu_ce_jit.log import warn
from npu_ce_jit.op.schema import accumulation_dtype
from npu_ce_jit.patch.exchange import Change, Patch, exchange, framework, require_parameters
from npu_ce_jit.torch_compat import is_autocast

_STUDIED = "1.16.0"
_OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
_PARAMETERS = (
    "ctx, hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale, outputs"
)

# log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1: `[N]` each; None for what was not asked.
Scores = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def trl() -> Patch:
    """Makes trl's SFT, DPO, KTO, GRPO and RLOO trainers score tokens by `linear_cross_entropy`, from hidden states.

    Exchanges `trl.kernels.ChunkedLogProbFunction.apply` in the whole process, also for models that already have their
    fused head; on a CPU it also makes trl skip ignored positions. Log-probabilities and entropy are differentiable and
    float32, as trl's. A head that ZeRO-3 has sharded is left to trl's own function, with a RuntimeWarning, and so is
    what torch.compile compiles.

    Returns:
        The Patch that undoes it.

    Raises:
        PatchError: trl is not installed, or its function is not the one that is known.

    Source: trl/kernels/chunked_logprob.py and add_fused_lm_head of trl 1.16.
    """
    kernels = framework("trl.kernels.chunked_logprob", _STUDIED)
    utils = framework("trl.trainer.utils", _STUDIED)
    studied = f"trl {_STUDIED}"
    function = getattr(kernels, "ChunkedLogProbFunction", None)
    if function is None or not hasattr(utils, "_use_triton") or getattr(kernels, "OPTIONAL_OUTPUTS", None) != _OUTPUTS:
        raise PatchError(
            f"expected trl.kernels.ChunkedLogProbFunction with the outputs {_OUTPUTS}, as {studied} has it, "
            f"got {function} with {getattr(kernels, 'OPTIONAL_OUTPUTS', None)}.",
            f"Nothing was exchanged. Install {studied}, or a newer npu_ce_jit, which may know this one.",
        )
    require_parameters("ChunkedLogProbFunction.forward", function.forward, _PARAMETERS, studied)
    require_parameters("trl.trainer.utils._use_triton", utils._use_triton, "device", studied)
    return exchange(
        "npu_ce_jit.patch.trl()",
        Change(function, "apply", _apply),
        Change(utils, "_use_triton", _leaves_out_ignored),
    )


def _leaves_out_ignored(theirs: Callable[..., bool], device: torch.device) -> bool:
    """Whether trl passes on only the positions that are scored; the answer's other uses are in what ours replaces."""
    return device.type == "cpu" or theirs(device)


def _apply(
    theirs: Callable[..., Scores],
    _function: type,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    chunk_size: int,
    final_logit_softcapping: float | None = None,
    logit_scale: float = 1.0,
    outputs: tuple[str, ...] = _OUTPUTS,
) -> Scores:
    if hasattr(weight, "ds_id"):
        warn(
            "npu_ce_jit: expected an output head that is whole until backward is over, got one that ZeRO-3 takes "
            "apart: trl's own function scores its tokens. Keep the head out of ZeRO-3, or use stage 2."
        )
        return theirs(
            hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale, outputs
        )
    if not is_autocast(hidden.device.type):  # autocast casts them itself
        weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    # trl divides the capped logits by the temperature: (cap / T) * tanh(scale * x / cap).
    scale = logit_scale / temperature
    cap = None if final_logit_softcapping is None else final_logit_softcapping / temperature

    def scores(times: float = 1.0, **asked: Any) -> Any:
        """The scores of the logits times a factor."""
        return linear_cross_entropy(
            hidden, weight, targets, linear_bias=bias, reduction="none", loss_dtype=accumulation_dtype(hidden.dtype),
            softcap=None if cap is None else cap * times, logit_scale=scale * times, **asked,
        )  # fmt: skip

    found = scores(return_lse=True, return_entropy="entropy" in outputs, return_argmax="is_top1" in outputs)
    log_sum_sq_probs = mean_logits = None
    with torch.no_grad():
        if "log_sum_sq_probs" in outputs:  # p^2 is the softmax of twice the logits, up to its normalisation
            log_sum_sq_probs = scores(2.0, return_lse=True).lse - 2 * found.lse
        if "mean_logits" in outputs:
            mean_logits = _mean_logits(theirs, hidden, weight, bias, targets, scale, cap, chunk_size)
    is_top1 = found.argmax == targets if "is_top1" in outputs else None
    return -found.loss, found.entropy, log_sum_sq_probs, mean_logits, is_top1


def _mean_logits(
    theirs: Callable[..., Scores],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    cap: float | None,
    chunk_size: int,
) -> Tensor | None:
    """Each position's mean logit: the product with the weight's mean row, or, under a softcap, by trl's own tiles."""
    if cap is not None:
        return theirs(hidden, weight, bias, targets, 1.0, chunk_size, cap, scale, ("mean_logits",))[3]
    dtype = accumulation_dtype(hidden.dtype)
    mean = hidden.to(dtype) @ weight.mean(0, dtype=dtype)
    return (mean if bias is None else mean + bias.mean(dtype=dtype)) * scale
