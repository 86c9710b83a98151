# SPDX-License-Identifier: Apache-2.0
"""Public functions that bring a caller's arguments into an operator's form, and call the operator once."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree

from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.op.checks import check_inplace_backward, check_kinds, require_tensor
from npu_ce_jit.op.torch_private import is_distributed
from npu_ce_jit.torch_compat import is_autocast

OPS = torch.ops.npu_ce_jit
HALVES = (torch.float16, torch.bfloat16)


class CrossEntropyOutput(NamedTuple):
    """What the losses return when any `return_*` is True; None for what was not asked for.

    `loss` and `z_loss` have the loss's dtype and shape; `lse` and `entropy` are float32 (float64 for float64 input)
    and `argmax` int64, each in the target's shape. All but argmax are differentiable.
    """

    loss: Tensor
    z_loss: Tensor | None
    lse: Tensor | None
    argmax: Tensor | None
    entropy: Tensor | None

    def predicted_tokens(self, target: Tensor, ignore_index: int = -100) -> Tensor:
        """The most likely class of each position, int64 in the target's shape; -1 where it is ignored."""
        return torch.where(target == ignore_index, -1, self._argmax())

    def token_accuracy(self, target: Tensor, ignore_index: int = -100) -> Tensor:
        """The share of the positions that are not ignored whose most likely class is the target's, float32 `[]`."""
        counted = target != ignore_index
        return ((self._argmax() == target) & counted).sum().float() / counted.sum()

    def _argmax(self) -> Tensor:
        if self.argmax is None:
            raise RuntimeError("expected an output that has its argmax, got one without; pass return_argmax=True")
        return self.argmax


# So that torch.export can save a program that returns one.
_pytree._register_namedtuple(CrossEntropyOutput, serialized_type_name="npu_ce_jit.CrossEntropyOutput")


def npu_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
    return_zloss: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`torch_npu.npu_cross_entropy_loss`: log_softmax and nll_loss fused, on CPU and NPU.

    Args:
        input: logits `[N, C]`; float16, bfloat16, float32 (and float64 on CPU); any strides; C >= 1, N >= 0.
        target: class indices `[N]`, int64 or int32, in `[0, C)` or equal to `ignore_index`.
        weight: `[C]`, float32 or the input's dtype; any finite values.
        reduction: "mean" (over the weight of the rows that are not ignored), "sum" or "none".
        ignore_index: rows with this target add nothing; compared with `==`, whatever its sign.
        label_smoothing: in [0, 1].
        lse_square_scale_for_zloss: adds `scale * lse**2` of each row to the loss (mean: over the row count).
        return_zloss: returns the z-loss by itself as well.

    Returns:
        `loss`, the input's dtype, `[N]` for "none", else `[1]`; `log_prob`, the input's dtype, `[N, C]`;
        `zloss`, like loss, or `[0]`; `lse_for_zloss`, float32 (float64 for float64) `[N]`, or `[0]` where the scale
        is 0. Gradients flow through loss, log_prob and zloss, to any order.

    Raises:
        TypeError: input or target is no Tensor.
        NotImplementedError: input is not of a supported floating dtype.
        ValueError: batch sizes differ, or an unknown reduction.
        IndexError: on CPU, a target out of range. On NPU that row's loss and gradient are NaN.
        RuntimeError: everything else: ranks, C = 0, devices, dtypes, weight's size, label_smoothing outside [0, 1],
            a negative or non-finite scale, weight.requires_grad.

    Source: the public page of `torch_npu.npu_cross_entropy_loss`, with its limits on gradients lifted.
    """
    require_tensor("input", input)
    require_tensor("target", target)
    ignore_index, label_smoothing, lse_square_scale_for_zloss = plain_numbers(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        lse_square_scale_for_zloss=lse_square_scale_for_zloss,
    )
    return OPS.npu_cross_entropy_loss.default(  # type: ignore[no-any-return]
        input, target, weight, reduction, ignore_index, label_smoothing, lse_square_scale_for_zloss, return_zloss
    )


def npu_cross_entropy_loss_backward(
    grad_loss: Tensor,
    log_prob: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    grad_zloss: Tensor | None = None,
    lse_for_zloss: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
) -> Tensor:
    """The gradient of the logits from the drop-in's outputs, for callers who keep log_prob themselves.

    Args:
        grad_loss: gradient of loss, in loss's shape (`[N]`, `[1]`) or 0-d.
        log_prob: `[N, C]`, as returned by `npu_cross_entropy_loss`.
        grad_zloss: gradient of zloss, in its shape; added to grad_loss for the z-loss part.
        lse_for_zloss: `[N]`, needed where the scale is not 0.

    Returns:
        `[N, C]` in log_prob's dtype. It carries log_prob's rounding: autograd, which keeps the logits, is more exact
        in bfloat16 and float16.

    Raises:
        As `npu_cross_entropy_loss`; NotImplementedError when a derivative of this function is asked for.

    Source: the public page of the operator; zloss as in its specification.
    """
    for name, value in (("grad_loss", grad_loss), ("log_prob", log_prob), ("target", target)):
        require_tensor(name, value)
    ignore_index, label_smoothing, lse_square_scale_for_zloss = plain_numbers(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        lse_square_scale_for_zloss=lse_square_scale_for_zloss,
    )
    return OPS.npu_cross_entropy_loss_backward.default(  # type: ignore[no-any-return]
        grad_loss,
        log_prob,
        target,
        weight,
        grad_zloss,
        lse_for_zloss,
        reduction,
        ignore_index,
        label_smoothing,
        lse_square_scale_for_zloss,
    )


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    return_z_loss: bool = False,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_lse: bool = False,
    return_argmax: bool = False,
    return_entropy: bool = False,
    loss_dtype: torch.dtype | None = None,
    inplace_backward: bool = False,
) -> Tensor | CrossEntropyOutput:
    """`torch.nn.functional.cross_entropy` without the `[N, C]` intermediates.

    Works on `x' = softcap * tanh(logit_scale * x / softcap)`, or `logit_scale * x` without softcap. Forward writes
    nothing of size `[N, C]` and keeps two numbers of each row; backward recomputes from the logits.

    Args:
        input: logits `[C]`, `[N, C]` or `[N, C, d1, ...]`; float16, bfloat16, float32 (and float64 on CPU). A
            CPU reads `[N, C, d1, ...]` in place, contiguous or channels_last; on an NPU, and in other layouts,
            logits whose classes are not adjacent in memory are copied once.
        target: class indices `[]`, `[N]` or `[N, d1, ...]`, int64 or int32; class probabilities in the input's shape
            fall back to `torch.nn.functional.cross_entropy`.
        weight: `[C]`, float32 or the input's dtype.
        reduction: "mean", "sum" or "none".
        ignore_index: rows with this target add nothing; compared with `==`, whatever its sign.
        label_smoothing: in [0, 1].
        z_loss: scale s of `s * lse**2`, added to the loss of each row (mean: over the row count).
        return_z_loss: return the z-loss by itself as well.
        softcap: above 0, or None for none.
        logit_scale: factor of the logits (1 / temperature), not negative.
        return_lse, return_argmax, return_entropy: return the row's logsumexp, its most likely class (the lowest
            index on ties, ignored rows too), the entropy of its distribution.
        loss_dtype: dtype of the loss: None for the input's (float32 under autocast), or torch.float32.
        inplace_backward: backward writes the gradient over the logits instead of allocating it. Needs a contiguous
            `[N, C]` input, eager mode, and one backward; another backward that has saved the logits raises. A
            plain read of them after backward gives the gradient. Under tracing, torch.func, checkpointing or
            create_graph the gradient is a new tensor.

    Returns:
        The loss: 0-d for mean and sum, `[N]` or `[N, d1, ...]` for none. With any `return_*`, a `CrossEntropyOutput`.

    Raises:
        TypeError: input or target is no Tensor.
        NotImplementedError: input is not of a supported floating dtype.
        ValueError: batch sizes differ, or an unknown reduction.
        IndexError: on CPU, a target out of range. On NPU that row's loss and gradient are NaN.
        RuntimeError: everything else: ranks, C = 0, devices, dtypes, weight's size, options out of range,
            weight.requires_grad, inplace_backward on logits that are not contiguous or were changed.

    Source: torch.nn.functional.cross_entropy; z-loss as in PaLM (arXiv 2204.02311), softcap as in Gemma 2
    (arXiv 2408.00118).
    """
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        require_tensor("input", input)
        require_tensor("target", target)
    ignore_index, label_smoothing, z_loss, softcap, logit_scale = plain_numbers(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
    )
    returns = return_z_loss or return_lse or return_argmax or return_entropy
    if target.dtype.is_floating_point and target.shape == input.shape:
        if returns or z_loss or softcap is not None or logit_scale != 1.0 or loss_dtype or inplace_backward:
            raise RuntimeError(
                "expected class indices with options that torch.nn.functional.cross_entropy does not have, got class "
                f"probabilities of shape {list(target.shape)}; pass target.argmax(1), or leave those options out"
            )
        return F.cross_entropy(input, target, weight, None, ignore_index, None, reduction, label_smoothing)
    if is_autocast(input.device.type):
        # As torch, which computes F.cross_entropy in float32 then. The kernels always do, so no logits are cast.
        if loss_dtype is None and input.dtype in HALVES:
            loss_dtype = torch.float32
        if weight is not None and weight.dtype in HALVES:
            weight = weight.float()
    logits, classes = _flattened(input, target, weight, inplace_backward)
    loss, z, lse, argmax, entropy = OPS.cross_entropy.default(
        logits,
        classes,
        weight,
        reduction,
        ignore_index,
        label_smoothing,
        z_loss,
        return_z_loss,
        softcap,
        logit_scale,
        return_lse,
        return_argmax,
        return_entropy,
        loss_dtype,
        inplace_backward,
    )
    if classes is not target:
        rows = target.shape
        loss, z = (v.reshape(rows) if reduction == "none" else v for v in (loss, z if return_z_loss else loss))
        lse, argmax, entropy = (
            v.reshape(rows) if asked else v
            for v, asked in ((lse, return_lse), (argmax, return_argmax), (entropy, return_entropy))
        )
    if not returns:
        return loss  # type: ignore[no-any-return]
    return CrossEntropyOutput(
        loss,
        z if return_z_loss else None,
        lse if return_lse else None,
        argmax if return_argmax else None,
        entropy if return_entropy else None,
    )


def _flattened(input: Tensor, target: Tensor, weight: Tensor | None, inplace_backward: bool) -> tuple[Tensor, Tensor]:
    """Logits and targets as the operator takes them: `[N, C]` as they are, `[C]` as one row, and `[N, C, d1, ...]` as
    `[N, C, L]` for the CPU kernels where classes are not adjacent in memory, else as `[N * L, C]`."""
    if input.dim() in (0, 2):
        return input, target
    check_kinds(input, target, weight)
    if input.shape[min(1, input.dim() - 1)] == 0:
        raise RuntimeError(f"expected input with at least one class, got shape {list(input.shape)}")
    if inplace_backward:
        check_inplace_backward(input)
    if input.dim() == 1:
        if target.dim() != 0:
            raise RuntimeError(f"expected target of shape [] for input of shape [C], got {list(target.shape)}")
        return input[None], target[None]
    expected = (input.shape[0], *input.shape[2:])
    if target.shape != expected:
        raise RuntimeError(f"expected target of shape {list(expected)}, got {list(target.shape)}")
    classes = target.reshape(-1)
    if input.device.type != "npu" and input.stride(1) != 1 and not is_distributed(input):
        return input.flatten(2), classes
    rows = input.movedim(1, -1).reshape(-1, input.shape[1])
    # For N = 1 the reshape is a view without adjacent classes: copied here once, not in forward and again in backward.
    return rows if rows.stride(1) == 1 else rows.contiguous(), classes
