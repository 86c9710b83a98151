# SPDX-License-Identifier: Apache-2.0
"""The operators on DTensors: which part of the loss each rank of a mesh has, and what the parts add up to.

A dimension of the mesh shards the rows (Shard(0)), the classes (Shard(1)), or nothing (Replicate); other placements are
redistributed to Replicate first. Rows are reduced by sums over all ranks, never by a mean of the ranks' means, which is
wrong where ranks have different numbers of rows that count. `vocab_parallel` computes sharded classes.

DTensor asks its table of handlers before its own rules. That table is private to torch, and used here alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from npu_ce_jit.op import operators
from npu_ce_jit.op.autograd.functions import OPS
from npu_ce_jit.op.distributed import vocab_parallel
from npu_ce_jit.op.distributed.data_parallel import advice_for_mixed, require_reduced_once
from npu_ce_jit.op.distributed.targets import VocabRange
from npu_ce_jit.op.rows import OutputGrads, transformed, weight_of_targets
from npu_ce_jit.op.schema import (
    ARGMAX,
    ENTROPY,
    LOG_PROB,
    LSE,
    NONE,
    Z_LOSS,
    ForwardOutputs,
    LossTerms,
    accumulation_dtype,
)

Placements = tuple[Placement, ...]


class _Layout(NamedTuple):
    """How the mesh shards the logits."""

    mesh: DeviceMesh
    classes: int
    logits: Placements  # Shard(0), Shard(1) or Replicate

    @classmethod
    def of(cls, input: Any, **others: Any) -> _Layout:
        if not isinstance(input, DTensor):
            raise RuntimeError(
                f"expected input to be a DTensor, as the other tensors are, got {type(input).__name__}; "
                f"{advice_for_mixed({'input': input, **others})}"
            )
        placements = tuple(p if type(p) is Shard else Replicate() for p in input.placements)
        return cls(input.device_mesh, input.shape[1], placements)

    @classmethod
    def of_linear(cls, input: Any, linear_weight: Any, **others: Any) -> _Layout:
        """A linear layer's logits: the classes are sharded as linear_weight, the rows as input in other dimensions."""
        if not isinstance(input, DTensor) or not isinstance(linear_weight, DTensor):
            got = " and ".join(type(t).__name__ for t in (input, linear_weight))
            raise RuntimeError(
                f"expected input and linear_weight to be DTensors, as the other tensors are, got {got}; "
                f"{advice_for_mixed({'input': input, 'linear_weight': linear_weight, **others})}"
            )
        pairs = zip(input.placements, linear_weight.placements, strict=True)
        placements = tuple(Shard(1) if w == Shard(0) else i if i == Shard(0) else Replicate() for i, w in pairs)
        return cls(input.device_mesh, linear_weight.shape[0], placements)

    def along_rows(self, dim: int = 0) -> Placements:
        """Placements of a tensor whose dimension `dim` is the rows, and which has no classes."""
        return tuple(Shard(dim) if p.is_shard(0) else Replicate() for p in self.logits)

    def along_classes(self) -> Placements:
        """Placements of a tensor whose first dimension is the classes, and which has no rows."""
        return tuple(Shard(0) if p.is_shard(1) else Replicate() for p in self.logits)

    @property
    def everywhere(self) -> Placements:
        return (Replicate(),) * self.mesh.ndim

    def groups(self, dim: int) -> list[vocab_parallel.Group]:
        """The mesh dimensions that shard the rows (0) or the classes (1)."""
        return [(self.mesh, i) for i, p in enumerate(self.logits) if p.is_shard(dim)]

    def shard(self, input: Tensor, weight: Tensor | None) -> tuple[VocabRange, slice]:
        """This rank's classes, as Python ints: a traced graph is one rank's."""
        coordinate = self.mesh.get_coordinate()
        if coordinate is None:
            raise RuntimeError("expected a rank of the DTensors' mesh, got one outside of it")
        first, count = 0, self.classes
        for rank, ranks, placement in zip(coordinate, self.mesh.shape, self.logits, strict=True):
            if placement.is_shard(1):
                most = -(-count // ranks)
                start = min(rank * most, count)
                first, count = first + start, min(most, count - start)
        dtype = accumulation_dtype(input.dtype)
        weight_sum = input.new_full((), self.classes, dtype=dtype) if weight is None else weight.sum()
        return VocabRange(first, self.classes, weight_sum), slice(first, first + count)

    def local(self, name: str, tensor: Any, placements: Placements) -> Tensor:
        """This rank's part of a tensor, laid out as `placements`."""
        if not isinstance(tensor, DTensor) or tensor.device_mesh != self.mesh:
            got = f"a DTensor on {tensor.device_mesh}" if isinstance(tensor, DTensor) else type(tensor).__name__
            raise RuntimeError(
                f"expected {name} to be a DTensor on input's {self.mesh}, got {got}; "
                f"pass torch.distributed.tensor.distribute_tensor({name}, mesh, {list(placements)}) where all ranks "
                f"have the same, or DTensor.from_local({name}, mesh, {list(placements)}) where each has its own part"
            )
        if tensor.placements != placements:
            # Detaching is harmless below autograd; before 2.11, redistributing one that requires a gradient fails.
            detached: Any = tensor.detach()
            tensor = detached.redistribute(self.mesh, placements)
        local: Tensor = tensor.to_local()
        return local

    def local_or_none(self, name: str, tensor: Any, placements: Placements) -> Tensor | None:
        return None if tensor is None else self.local(name, tensor, placements)

    def distributed(self, local: Tensor, placements: Placements, *shape: int) -> Tensor:
        """A DTensor of `shape` of which this rank has `local`."""
        size = torch.Size(shape)
        stride = (size[1], 1) if len(size) == 2 else (1,) * len(size)
        return DTensor.from_local(local, self.mesh, placements, run_check=False, shape=size, stride=stride)


def _forward(input: Any, target: Any, weight: Any, *terms_outputs_dtype: Any) -> ForwardOutputs:
    *options, outputs, loss_dtype = terms_outputs_dtype
    terms = LossTerms(*options)
    layout = _Layout.of(input, target=target, weight=weight)
    if input.requires_grad:
        require_reduced_once(input=input)
    x = layout.local("input", input, layout.logits)
    y = layout.local("target", target, layout.along_rows())
    w = layout.local_or_none("weight", weight, layout.everywhere)
    not_ignored = y != terms.ignore_index
    argmax: Tensor | None
    entropy: Tensor | None
    if groups := layout.groups(1):
        shard, own = layout.shard(x, w)
        found, _ = vocab_parallel.forward(x, y, None if w is None else w[own], terms, outputs, groups, shard)
        ce, row_stats, target_weight, entropy, argmax, _ = found
        denominators = torch.stack((target_weight.sum(), not_ignored.sum().to(ce.dtype)))
        log_prob = _log_probabilities(x, row_stats, terms) if outputs & LOG_PROB else x
    else:
        ce_terms, of_rows = terms._replace(reduction=NONE, z_loss=0.0), outputs & (LOG_PROB | ARGMAX | ENTROPY)
        ce, _, log_prob, _, argmax, entropy, row_stats, denominators = OPS._forward.default(
            x, y, w, *ce_terms, of_rows, accumulation_dtype(x.dtype)
        )
    lse = row_stats.sum(0)
    loss, z_loss, denominators = vocab_parallel.reduced(ce, lse, not_ignored, denominators, terms, layout.groups(0))

    n, rows, everywhere = input.shape[0], layout.along_rows(), layout.everywhere
    of_loss, loss_shape = (rows, (n,)) if terms.reduction == NONE else (everywhere, ())

    def if_asked(bit: int, local: Tensor | None, placements: Placements, *shape: int) -> Tensor:
        if outputs & bit and local is not None:
            return layout.distributed(local, placements, *shape)
        return layout.distributed(x.new_empty(0, dtype=None if local is None else local.dtype), everywhere, 0)

    return (
        layout.distributed(loss.to(loss_dtype), of_loss, *loss_shape),
        if_asked(Z_LOSS, z_loss.to(loss_dtype), of_loss, *loss_shape),
        if_asked(LOG_PROB, log_prob, layout.logits, *input.shape),
        if_asked(LSE, lse, rows, n),
        if_asked(ARGMAX, argmax, rows, n),
        if_asked(ENTROPY, entropy, rows, n),
        layout.distributed(row_stats, layout.along_rows(1), 2, n),
        # Without a reduction nothing reads the denominators, and computing them would cost a collective.
        layout.distributed(denominators.new_ones(2) if terms.reduction == NONE else denominators, everywhere, 2),
    )


def _backward(
    grad_loss: Any, grad_z_loss: Any, grad_log_prob: Any, grad_lse: Any, grad_entropy: Any, input: Any, target: Any,
    weight: Any, row_stats: Any, entropy: Any, denominators: Any, *options: Any,
) -> Tensor:  # fmt: skip
    terms = LossTerms(*options)
    layout = _Layout.of(input)
    rows, everywhere = layout.along_rows(), layout.everywhere
    of_loss = rows if terms.reduction == NONE else everywhere
    gradients = OutputGrads(
        layout.local_or_none("grad_loss", grad_loss, of_loss),
        layout.local_or_none("grad_z_loss", grad_z_loss, of_loss),
        layout.local_or_none("grad_log_prob", grad_log_prob, layout.logits),
        layout.local_or_none("grad_lse", grad_lse, rows),
        layout.local_or_none("grad_entropy", grad_entropy, rows),
    )
    x = layout.local("input", input, layout.logits)
    y = layout.local("target", target, rows)
    w = layout.local_or_none("weight", weight, everywhere)
    stats = layout.local("row_stats", row_stats, layout.along_rows(1))
    h = None if grad_entropy is None else layout.local("entropy", entropy, rows)
    sums = layout.local("denominators", denominators, everywhere)
    if groups := layout.groups(1):
        shard, own = layout.shard(x, w)
        target_weight = weight_of_targets(y, w, terms.ignore_index).to(stats.dtype)
        w = None if w is None else w[own]
        result = vocab_parallel.backward(gradients, x, y, w, stats, target_weight, h, sums, terms, groups, shard)
    else:
        result = OPS._backward.default(*gradients, x, y, w, stats, h, sums, *terms)
    return layout.distributed(result, layout.logits, *input.shape)


def _linear(*arguments: Any) -> tuple[Tensor, ...]:
    from npu_ce_jit.op.distributed import vocab_parallel_linear
    from npu_ce_jit.op.linear.chunks import problem_of

    given = problem_of(*arguments[:16])
    loss_dtype, chunk_rows, aspect_ratio, group, output_mask = arguments[16:]
    input, linear_weight, linear_bias, target, weight, gradients, terms, outputs = cast("Any", given)
    if group is not None:
        raise RuntimeError("expected plain tensors with a group, got DTensors, of which a mesh has the ranks")
    layout = _Layout.of_linear(input, linear_weight, linear_bias=linear_bias, target=target, weight=weight)
    if input.requires_grad:
        require_reduced_once(input=input, linear_weight=linear_weight)
    rows, classes, everywhere = layout.along_rows(), layout.along_classes(), layout.everywhere
    of_loss = rows if terms.reduction == NONE else everywhere
    x = layout.local("input", input, rows)
    w = layout.local_or_none("weight", weight, everywhere)
    shard, own = layout.shard(x, w)
    problem = given._replace(
        input=x,
        linear_weight=layout.local("linear_weight", linear_weight, classes),
        linear_bias=layout.local_or_none("linear_bias", linear_bias, classes),
        target=layout.local("target", target, rows),
        weight=None if w is None else w[own],
        gradients=OutputGrads(
            layout.local_or_none("grad_loss", gradients.loss, of_loss),
            layout.local_or_none("grad_z_loss", gradients.z_loss, of_loss),
            None,
            layout.local_or_none("grad_lse", gradients.lse, rows),
            layout.local_or_none("grad_entropy", gradients.entropy, rows),
        ),
    )
    loss, z_loss, lse, argmax, entropy, *layer_gradients = vocab_parallel_linear.linear(
        problem, layout.groups(1), layout.groups(0), shard, chunk_rows, aspect_ratio, output_mask
    )
    loss_shape = target.shape if terms.reduction == NONE else ()

    def if_asked(asked: int, values: Tensor, placements: Placements, *shape: int) -> Tensor:
        return layout.distributed(values, placements, *shape) if asked else layout.distributed(values, everywhere, 0)

    of_layer = ((input, rows), (linear_weight, classes), (linear_bias, classes))
    return (
        layout.distributed(loss.to(loss_dtype), of_loss, *loss_shape),
        if_asked(outputs & Z_LOSS, z_loss.to(loss_dtype), of_loss, *loss_shape),
        if_asked(outputs & LSE, lse, rows, *target.shape),
        if_asked(outputs & ARGMAX, argmax, rows, *target.shape),
        if_asked(outputs & ENTROPY, entropy, rows, *target.shape),
        *(
            if_asked(asked, gradient, placements, *(of.shape if asked else ()))
            for gradient, asked, (of, placements) in zip(layer_gradients, output_mask, of_layer, strict=True)
        ),
    )


def _linear_cross_entropy(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    from npu_ce_jit.op.linear.operator import linear_cross_entropy

    return linear_cross_entropy(*arguments, **options)


def _log_probabilities(input: Tensor, row_stats: Tensor, terms: LossTerms) -> Tensor:
    """The log-probabilities of this rank's classes."""
    x = transformed(input.to(row_stats.dtype), terms).x
    return ((x - row_stats[0][:, None]) - row_stats[1][:, None]).to(input.dtype)


def _handler(function: Callable[..., Any]) -> Callable[..., Any]:
    def handle(_operator: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return function(*arguments, **options)

    return handle


def register() -> None:
    """Puts our operators into DTensor's table of handlers."""
    handlers = getattr(getattr(DTensor, "_op_dispatcher", None), "_custom_op_handlers", None)
    if not isinstance(handlers, dict):
        warnings.warn(
            f"npu_ce_jit: DTensor of torch {torch.__version__} has no table of handlers where that of torch 2.13 has "
            "it, so no loss takes DTensors. Install torch 2.13, or call "
            "npu_ce_jit.parallel.vocab_parallel_cross_entropy on local tensors.",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    handlers[OPS._forward.default] = _handler(_forward)
    handlers[OPS._backward.default] = _handler(_backward)
    handlers[OPS._linear.default] = _handler(_linear)
    # In inference mode no Autograd kernel runs before DTensor, so the public operators themselves arrive here.
    handlers[OPS.npu_cross_entropy_loss.default] = _handler(operators.npu_cross_entropy_loss)
    handlers[OPS.npu_cross_entropy_loss_backward.default] = _handler(operators.npu_cross_entropy_loss_backward)
    handlers[OPS.cross_entropy.default] = _handler(operators.cross_entropy)
    handlers[OPS.linear_cross_entropy.default] = _handler(_linear_cross_entropy)
