# SPDX-License-Identifier: Apache-2.0
"""`_linear`: the loss of `input @ linear_weight.T + linear_bias` and its gradients, a chunk of rows at a time.

For each chunk, the logits are made, `_forward` reads them, `_backward_` overwrites them with their gradient, and that
is multiplied into the gradients of the layer. All chunks use the same buffer. So neither the logits nor a second copy
of linear_weight's gradient ever exist whole.

Accumulation dtypes: float32 (float64 for float64 input) for the losses, their sum and linear_bias's gradient, and for
matrix products on a CPU; an NPU accumulates products in its cube unit. linear_weight's gradient is added up over the
chunks in its own dtype and rounded once a chunk, which is a reason for few chunks: a float32 copy of it may be larger
than what chunks save.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from npu_ce_jit.op.autograd.functions import OPS
from npu_ce_jit.op.checks import require_targets_in_range
from npu_ce_jit.op.linear.head import Head, product_dtype
from npu_ce_jit.op.rows import OutputGrads, denominators_of_targets
from npu_ce_jit.op.saved import require_storage
from npu_ce_jit.op.schema import (
    ARGMAX,
    ENTROPY,
    LSE,
    MEAN,
    NONE,
    SKIP_IGNORED,
    Z_LOSS,
    LinearOutputs,
    LossTerms,
    accumulation_dtype,
)

# A chunk's logits take this share of all logits' bytes. With a smaller share, reading linear_weight and its gradient
# once a chunk takes more of the time, and two-byte gradients are rounded more often.
_SHARE = 1 / 4
# Elements of a chunk's logits: a smaller chunk saves no memory worth having, a larger one gains no speed.
_FEWEST, _MOST = 1 << 21, 1 << 27

LayerGradients = tuple[Tensor, Tensor, Tensor]


class LinearInputs(NamedTuple):
    """The arguments of `_linear` that say what to compute."""

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    weight: Tensor | None
    gradients: OutputGrads  # of the outputs; all None: 1 for the loss
    terms: LossTerms
    outputs: int

    def reads_ignored_rows(self) -> bool:
        """Whether ignored rows are computed: not for the losses, but their lse, argmax and entropy are results too."""
        of_rows = bool(self.outputs & (LSE | ARGMAX | ENTROPY)) or self.gradients.reach_ignored_rows()
        return of_rows and not self.outputs & SKIP_IGNORED

    def of(self, rows: Tensor | slice) -> LinearInputs:
        """Only some rows. The losses' gradients have rows only where the losses do: for reduction none."""
        loss, z_loss, log_prob, lse, entropy = self.gradients
        if self.terms.reduction == NONE:
            loss, z_loss = (None if g is None else g[rows] for g in (loss, z_loss))
        lse, entropy = (None if g is None else g[rows] for g in (lse, entropy))
        gradients = OutputGrads(loss, z_loss, log_prob, lse, entropy)
        return self._replace(input=self.input[rows], target=self.target[rows], gradients=gradients)

    def with_explicit_gradients(self, counted: Tensor) -> LinearInputs:
        """With 1 as a tensor where no gradient is given, and with SKIP_IGNORED, gradients of 0 in ignored rows."""
        loss, z_loss, log_prob, lse, entropy = self.gradients
        if all(g is None for g in self.gradients):
            shape = self.target.shape if self.terms.reduction == NONE else ()
            loss = self.input.new_ones(shape, dtype=accumulation_dtype(self.input.dtype))
        if self.outputs & SKIP_IGNORED:
            lse, entropy = (None if g is None else torch.where(counted, g, 0) for g in (lse, entropy))
        return self._replace(gradients=OutputGrads(loss, z_loss, log_prob, lse, entropy))


class Results(NamedTuple):
    """Each row's results, `[N]` in the accumulation dtype unless noted otherwise; None where not needed."""

    ce: Tensor  # the cross entropy alone, 0 where ignored
    lse: Tensor | None
    argmax: Tensor | None  # int64
    entropy: Tensor | None


def problem_of(*arguments: Any) -> LinearInputs:
    """The LinearInputs in `_linear`'s arguments up to `outputs`."""
    grad_loss, grad_z_loss, grad_lse, grad_entropy = arguments[5:9]
    gradients = OutputGrads(grad_loss, grad_z_loss, None, grad_lse, grad_entropy)
    input, linear_weight, linear_bias, target, weight = arguments[:5]
    terms = LossTerms(*arguments[9:15])
    return LinearInputs(input, linear_weight, linear_bias, target, weight, gradients, terms, arguments[15])


def linear(*arguments: Any) -> LinearOutputs:
    """The loss and what was asked beside it, and the gradients of the layer that `output_mask` asks for."""
    loss_dtype, chunk_rows, aspect_ratio, _group, output_mask = arguments[16:]
    problem = problem_of(*arguments[:16])
    loss, z_loss, *others = losses_and_gradients(problem, OneProcess(problem), chunk_rows, aspect_ratio, output_mask)
    return loss.to(loss_dtype), z_loss.to(loss_dtype), *others  # type: ignore[return-value]


def losses_and_gradients(
    problem: LinearInputs, ranks: OneProcess, chunk_rows: int, aspect_ratio: int, output_mask: list[bool]
) -> LinearOutputs:
    """`linear` with losses in the accumulation dtype; `ranks` knows how ranks share the rows and the classes."""
    require_storage(problem._fields[:5], problem[:5])
    input, target, terms = problem.input, problem.target, problem.terms
    is_on_cpu = target.device.type == "cpu"
    if is_on_cpu:
        # Checked before rows are split, so that the message has the row's number in `target`, not in a chunk.
        require_targets_in_range(target, ranks.classes, terms.ignore_index)
    counted = target != terms.ignore_index
    denominators = ranks.denominators(target, accumulation_dtype(input.dtype))
    problem = problem.with_explicit_gradients(counted)
    # An NPU multiplies ignored rows too: to leave them out, the host would have to wait for their number.
    ignored = None if is_on_cpu and bool(counted.all()) else target == terms.ignore_index
    leaves_out = is_on_cpu and ignored is not None and not problem.reads_ignored_rows()
    if leaves_out:
        problem, ignored = problem.of(counted.nonzero()[:, 0]), None
    rows = _rows_of_a_chunk(problem, ranks.classes_of_a_rank, chunk_rows, aspect_ratio)
    results, gradients = _in_chunks(problem, ignored, ranks, denominators, rows, output_mask)
    if leaves_out:
        # The index of each row's result: an ignored row's is that of a row of zeros after the last.
        places = torch.full_like(target, len(problem.target), dtype=torch.int64)
        places[counted] = torch.arange(len(problem.target))
        results = Results(*(None if values is None else _spread(values, places) for values in results))  # type: ignore[arg-type]
        if output_mask[0]:
            gradients = (_spread(gradients[0], places), *gradients[1:])
    return *_returned(results, counted, denominators, problem, ranks), *gradients


class OneProcess:
    """For a process that has all rows and all classes. `vocab_parallel_linear` overrides what differs over ranks."""

    def __init__(self, problem: LinearInputs) -> None:
        self.weight, self.terms = problem.weight, problem.terms
        # The cross entropy alone: its mean has another denominator than the z-loss's.
        self.ce_terms = self.terms._replace(reduction=NONE, z_loss=0.0)
        self.classes = self.classes_of_a_rank = len(problem.linear_weight)

    def denominators(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        return denominators_of_targets(target, self.weight, self.terms.ignore_index, dtype)

    def results(
        self, logits: Tensor, target: Tensor, outputs: int, gradients: OutputGrads | None, denominators: Tensor
    ) -> Results:
        """Each row's results; with `gradients`, also writes the logits' gradient over the logits."""
        ce, _, _, lse, argmax, entropy, row_stats, _ = OPS._forward.default(
            logits, target, self.weight, *self.ce_terms, outputs, denominators.dtype
        )
        if gradients is not None:
            OPS._backward_.default(
                *gradients, logits, target, self.weight, row_stats, entropy if outputs & ENTROPY else None,
                denominators, *self.terms,
            )  # fmt: skip
        return Results(ce, lse, argmax, entropy)

    def total(self, losses: Tensor) -> Tensor:
        return losses.sum()


def _in_chunks(
    problem: LinearInputs,
    ignored: Tensor | None,
    ranks: OneProcess,
    denominators: Tensor,
    chunk_rows: int,
    output_mask: list[bool],
) -> tuple[Results, LayerGradients]:
    """`ignored` is None where no row is."""
    input, linear_weight, linear_bias, _, _, gradients, terms, outputs = problem
    dtype = accumulation_dtype(input.dtype)
    # Not zeroed: each chunk writes its rows of grad_input, and the first chunk writes grad_linear_weight.
    grad_input, grad_linear_weight = (
        tensor.new_empty(tensor.shape if asked else (0,))
        for tensor, asked in zip((input, linear_weight), output_mask, strict=False)
    )
    grad_linear_bias = input.new_zeros((len(linear_weight) if output_mask[2] else 0,), dtype=dtype)
    needed = outputs & (LSE | ARGMAX | ENTROPY)
    needed |= (LSE if terms.z_loss else 0) | (ENTROPY if gradients.entropy is not None else 0)

    def of_counted(x: Tensor) -> Tensor:
        # The input of an ignored row may hold NaN, and 0 * NaN is NaN.
        return x if ignored is None else torch.where(ignored[chunk, None], 0, x)

    products = product_dtype(input)
    buffer = input.new_empty((chunk_rows, len(linear_weight)), dtype=products)
    head = Head(linear_weight, linear_bias, products)
    of_chunks = []
    for start in range(0, max(1, len(input)), chunk_rows):
        chunk = slice(start, min(start + chunk_rows, len(input)))
        part = problem.of(chunk)
        x = part.input.to(products)
        if not problem.reads_ignored_rows():
            x = of_counted(x)
        logits = buffer[: len(x)]
        head.multiply(x, out=logits)
        of_chunks.append(
            ranks.results(logits, part.target, needed, part.gradients if any(output_mask) else None, denominators)
        )
        if output_mask[0]:
            head.grad_input(logits, out=grad_input[chunk])
        if output_mask[1]:
            if problem.reads_ignored_rows() and not gradients.reach_ignored_rows():
                x = of_counted(x)
            head.add_grad_weight(logits, x, to=grad_linear_weight, is_first=start == 0)
        if output_mask[2]:
            grad_linear_bias += logits.sum(0, dtype=dtype)
    ce, lse, argmax, entropy = (torch.cat(parts) for parts in zip(*of_chunks, strict=True))
    results = Results(
        ce, *(values if needed & bit else None for values, bit in ((lse, LSE), (argmax, ARGMAX), (entropy, ENTROPY)))
    )
    return results, (grad_input, grad_linear_weight, grad_linear_bias.to(input.dtype))


def _returned(
    results: Results, counted: Tensor, denominators: Tensor, problem: LinearInputs, ranks: OneProcess
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses in the accumulation dtype, and what was asked beside them; a tensor of shape [0] for what was not."""
    terms, outputs = problem.terms, problem.outputs
    ce, lse, argmax, entropy = results
    z = torch.zeros_like(ce) if lse is None else torch.where(counted, terms.z_loss * lse * lse, 0)
    if terms.reduction != NONE:
        ce, z = ranks.total(ce), ranks.total(z) if terms.z_loss else z.new_zeros(())
    if terms.reduction == MEAN:
        ce, z = ce / denominators[0], z / denominators[1]

    def if_asked(bit: int, values: Tensor | None, dtype: torch.dtype = ce.dtype) -> Tensor:
        return values if values is not None and outputs & bit else ce.new_empty(0, dtype=dtype)

    of_rows = if_asked(LSE, lse), if_asked(ARGMAX, argmax, torch.int64), if_asked(ENTROPY, entropy)
    return ce + z if terms.z_loss else ce, if_asked(Z_LOSS, z), *without_ignored(*of_rows, counted, outputs)


def without_ignored(
    lse: Tensor, argmax: Tensor, entropy: Tensor, counted: Tensor, outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The results as they are returned: with SKIP_IGNORED, an ignored row has 0, -1 and 0."""
    if not outputs & SKIP_IGNORED:
        return lse, argmax, entropy
    return (
        torch.where(counted, lse, 0) if outputs & LSE else lse,
        torch.where(counted, argmax, -1) if outputs & ARGMAX else argmax,
        torch.where(counted, entropy, 0) if outputs & ENTROPY else entropy,
    )


def _rows_of_a_chunk(problem: LinearInputs, classes: int, chunk_rows: int, aspect_ratio: int) -> int:
    rows, features = problem.input.shape
    if not chunk_rows and aspect_ratio:
        # As torch.nn.LinearCrossEntropyOptions: the rows whose logits are as large as the input, rounded up to a power
        # of two, over the ratio.
        share = -(-rows // max(1, -(-classes // max(1, features))))
        chunk_rows = (1 << max(0, share - 1).bit_length()) // aspect_ratio
    elif not chunk_rows:
        widening = product_dtype(problem.input).itemsize // problem.input.dtype.itemsize
        chunk_rows = min(int(rows * _SHARE / widening), _MOST // classes)
        chunk_rows = max(chunk_rows, _FEWEST // classes)
    return max(1, min(chunk_rows, rows))


def _spread(values: Tensor, places: Tensor) -> Tensor:
    return torch.cat((values, values.new_zeros((1, *values.shape[1:]))))[places]
