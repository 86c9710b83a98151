# SPDX-License-Identifier: Apache-2.0
"""Distillation from the hidden states of a teacher and a student; the whole `[..., V]` logits are never made."""

from __future__ import annotations

from torch import Tensor

from npu_ce_jit.api.linear_cross_entropy import autocast_layer
from npu_ce_jit.api.numbers import plain_numbers
from npu_ce_jit.op import checks
from npu_ce_jit.op.layer_checks import check_head
from npu_ce_jit.op.linear import arguments, divergence, selected
from npu_ce_jit.op.schema import NONE, REDUCTIONS
from npu_ce_jit.torch_compat import is_autocast


def linear_kl_div(
    input: Tensor,
    linear_weight: Tensor,
    teacher_input: Tensor,
    teacher_linear_weight: Tensor,
    *,
    linear_bias: Tensor | None = None,
    teacher_linear_bias: Tensor | None = None,
    mask: Tensor | None = None,
    beta: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The divergence of a student's distribution over the classes from a teacher's, from the hidden states of both.

    With `t` and `s` the softmax of the teacher's and the student's logits over the temperature:

        beta = 0        KL(t || s), forward KL
        beta = 1        KL(s || t), reverse KL
        between         beta * KL(t || m) + (1 - beta) * KL(s || m), with m = beta * t + (1 - beta) * s

    The last is the generalised Jensen-Shannon divergence. As beta goes to 0 or 1 it goes to 0; at exactly
    0 and 1 the first two lines hold. The loss is not multiplied by temperature ** 2, as some implementations do.

    The logits of both models are made a chunk of rows at a time, in forward and in backward. For "mean" and "sum",
    forward makes the gradients that are needed and backward scales them; for "none", and in float16, backward makes the
    logits again. The gradient of a two-byte linear_weight is float32 while the chunks are added up. The host does not
    wait for the device: rows that `mask` leaves out are multiplied as zeros; pass `input[mask]` to save that work.

    Args:
        input: the student's hidden states `[..., in_features]`; float16, bfloat16, float32 (and float64 on CPU).
        linear_weight: the student's `[V, in_features]`, of the input's dtype, unless autocast casts both.
        teacher_input: `[..., teacher_in_features]`, for the same rows; its dtype and features are its own. The teacher
            gets no gradient.
        teacher_linear_weight: `[V, teacher_in_features]`, of teacher_input's dtype.
        linear_bias, teacher_linear_bias: `[V]`, of the dtype of the layer.
        mask: bool `[...]`, True for rows that count; None counts all.
        beta: between 0 and 1, see above.
        temperature: above 0; divides the logits of both, after softcap.
        softcap, teacher_softcap: `softcap * tanh(logits / softcap)` replaces the logits.
        reduction: "mean" over the rows that count, "sum", or "none".

    Returns:
        The loss in float32 (float64 for float64 inputs): 0-d for mean and sum; `[...]` for none, 0 where `mask` leaves
        a row out. A mean over no rows is NaN.

    Raises:
        TypeError: an input, a weight or the mask is no Tensor.
        ValueError: the two inputs differ in their rows, or an unknown reduction.
        NotImplementedError: a dtype that is not supported, torch.func's transforms, forward mode, and a derivative of
            the gradient.
        RuntimeError: everything else: ranks, V = 0, devices, dtypes, sizes, options out of range.

    Source: Agarwal et al., On-Policy Distillation of Language Models (GKD), arXiv 2306.13649, section 2, for the
        divergence and m; the ends are those of trl's GKDTrainer.generalized_jsd_loss and of Liger's fused linear JSD.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"expected reduction 'none', 'mean' or 'sum', got {reduction!r}")
    beta, temperature, softcap, teacher_softcap = plain_numbers(
        beta=beta, temperature=temperature, softcap=softcap, teacher_softcap=teacher_softcap
    )
    student = _checked_layer(input, linear_weight, linear_bias)
    teacher = _checked_layer(teacher_input, teacher_linear_weight, teacher_linear_bias, "teacher_")
    arguments.check_teacher(input, teacher_input, linear_weight, teacher_linear_weight)
    arguments.check_mask(mask, input)
    arguments.check_beta(beta)
    arguments.check_positive(temperature=temperature, softcap=softcap, teacher_softcap=teacher_softcap)
    arguments.require_reverse_mode("linear_kl_div", *student)
    loss: Tensor = divergence.linear_divergence(
        *student,
        *(None if tensor is None else tensor.detach() for tensor in teacher),
        None if mask is None else mask.flatten(),
        None,
        temperature,
        softcap,
        teacher_softcap,
        beta,
        REDUCTIONS[reduction],
        divergence.output_mask(student, REDUCTIONS[reduction]),
    )[0]
    return loss.reshape(input.shape[:-1]) if REDUCTIONS[reduction] == NONE else loss


def linear_topk_logprobs(
    input: Tensor,
    linear_weight: Tensor,
    k: int,
    *,
    linear_bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The k greatest log-probabilities of each row, and their classes: what a teacher sends to a student.

    The softmax is over the whole vocabulary, so the k probabilities add up to 1 at most. The logits are made a chunk of
    rows at a time. The results are not differentiable: the student's part is `linear_selected_logprobs`.

    Args:
        input: hidden states `[..., in_features]`; float16, bfloat16, float32 (and float64 on CPU).
        linear_weight: `[V, in_features]`, of the input's dtype, unless autocast casts both.
        k: between 1 and V.
        linear_bias: `[V]`, of the input's dtype.
        temperature: above 0; divides the logits, after softcap.
        softcap: `softcap * tanh(logits / softcap)` replaces the logits.

    Returns:
        Log-probabilities `[..., k]` in falling order, float32 (float64 for float64 inputs), and int64 classes
        `[..., k]`. Which of equal logits come first is torch.topk's choice.

    Raises:
        TypeError: input or linear_weight is no Tensor.
        NotImplementedError: a dtype that is not supported, torch.func's transforms, forward mode.
        RuntimeError: everything else: ranks, V = 0, devices, dtypes, sizes, options out of range.

    Source: torch.log_softmax and torch.topk.
    """
    k, temperature, softcap = plain_numbers(k=k, temperature=temperature, softcap=softcap)
    layer = _checked_layer(input, linear_weight, linear_bias)
    arguments.check_k(k, linear_weight.shape[0])
    arguments.check_positive(temperature=temperature, softcap=softcap)
    arguments.require_reverse_mode("linear_topk_logprobs", *layer)
    detached = (None if tensor is None else tensor.detach() for tensor in layer)
    logprobs, indices = selected.linear_topk(*detached, k, temperature, softcap)
    shape = (*input.shape[:-1], k)
    return logprobs.reshape(shape), indices.reshape(shape)


def linear_selected_logprobs(
    input: Tensor,
    linear_weight: Tensor,
    indices: Tensor,
    *,
    linear_bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """The log-probabilities of the classes that `indices` names, some for each row, differentiable.

    The logits are made a chunk of rows at a time, in forward and again in backward. The gradient of a two-byte
    linear_weight is float32 while the chunks are added up.

    Args:
        input: hidden states `[..., in_features]`; float16, bfloat16, float32 (and float64 on CPU).
        linear_weight: `[V, in_features]`, of the input's dtype, unless autocast casts both.
        indices: classes `[..., k]`, int64 or int32; a row may have a class twice.
        linear_bias, temperature, softcap: as for `linear_topk_logprobs`.

    Returns:
        Log-probabilities `[..., k]` of the whole vocabulary's softmax, float32 (float64 for float64 inputs).

    Raises:
        TypeError: input, linear_weight or indices is no Tensor.
        IndexError: on CPU, a class out of range. On NPU its log-probability and its row's gradients are NaN.
        NotImplementedError: a dtype that is not supported, torch.func's transforms, forward mode, and a derivative of
            the gradient.
        RuntimeError: everything else: ranks, V = 0, devices, dtypes, sizes, options out of range.

    Source: torch.log_softmax and torch.gather.
    """
    temperature, softcap = plain_numbers(temperature=temperature, softcap=softcap)
    layer = _checked_layer(input, linear_weight, linear_bias)
    arguments.check_indices(indices, input)
    arguments.check_positive(temperature=temperature, softcap=softcap)
    arguments.require_reverse_mode("linear_selected_logprobs", *layer)
    rows = indices.reshape(-1, indices.shape[-1])
    logprobs: Tensor = selected.linear_selected(*layer, rows, None, temperature, softcap, [False] * 3)[0]
    return logprobs.reshape(indices.shape)


_Layer = tuple[Tensor, Tensor, Tensor | None]


def _checked_layer(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, prefix: str = "") -> _Layer:
    """The layer, checked: its input as rows `[N, in_features]`, all in autocast's dtype where that is on."""
    checks.require_tensor(f"{prefix}input", input)
    checks.require_tensor(f"{prefix}linear_weight", linear_weight)
    if is_autocast(input.device.type):
        input, linear_weight, linear_bias = autocast_layer(input, linear_weight, linear_bias)
    check_head(input, linear_weight, linear_bias, prefix)
    return input.reshape(-1, input.shape[-1]), linear_weight, linear_bias
