# SPDX-License-Identifier: Apache-2.0
"""Kernels that most programs never call. The first call imports their modules: importing them with the package would
use up a third of the time that its import may take.
"""

from __future__ import annotations

from typing import Any


def reference_forward(*arguments: Any) -> Any:
    from npu_ce_jit.op import reference

    return reference.forward(*arguments)


def reference_backward(*arguments: Any) -> Any:
    from npu_ce_jit.op import reference

    return reference.backward(*arguments)


def reference_backward_(*arguments: Any) -> Any:
    from npu_ce_jit.op import reference

    return reference.backward_(*arguments)


def meta_forward(*arguments: Any) -> Any:
    from npu_ce_jit.op import meta

    return meta.forward(*arguments)


def meta_backward(*arguments: Any) -> Any:
    from npu_ce_jit.op import meta

    return meta.backward(*arguments)


def meta_backward_(*arguments: Any) -> Any:
    from npu_ce_jit.op import meta

    return meta.backward_(*arguments)


def meta_linear(*arguments: Any) -> Any:
    from npu_ce_jit.op import meta

    return meta.linear(*arguments)


def linear(*arguments: Any) -> Any:
    *_, group, _output_mask = arguments
    if group is not None:
        from npu_ce_jit.op.distributed import vocab_parallel_linear

        return vocab_parallel_linear.linear_of_group(*arguments)
    from npu_ce_jit.op.linear import chunks

    return chunks.linear(*arguments)


def record_linear(*arguments: Any) -> Any:
    from npu_ce_jit.op.linear import operator

    return operator.record_linear(*arguments)


def linear_cross_entropy(*arguments: Any, **options: Any) -> Any:
    from npu_ce_jit.op.linear import operator

    return operator.linear_cross_entropy(*arguments, **options)


def record_linear_cross_entropy(*arguments: Any) -> Any:
    from npu_ce_jit.op.linear import operator

    return operator.record_linear_cross_entropy(*arguments)


def batch_linear_cross_entropy(*arguments: Any) -> Any:
    from npu_ce_jit.op.linear import operator

    return operator.batch_linear_cross_entropy(*arguments)


def forward_rule(*arguments: Any) -> Any:
    from npu_ce_jit.op.tracing import vmap

    return vmap.forward_rule(*arguments)


def backward_rule(*arguments: Any) -> Any:
    from npu_ce_jit.op.tracing import vmap

    return vmap.backward_rule(*arguments)


def cross_entropy_rule(*arguments: Any) -> Any:
    from npu_ce_jit.op.tracing import vmap

    return vmap.cross_entropy_rule(*arguments)


def npu_cross_entropy_loss_rule(*arguments: Any) -> Any:
    from npu_ce_jit.op.tracing import vmap

    return vmap.npu_cross_entropy_loss_rule(*arguments)


def npu_cross_entropy_loss_backward_rule(*arguments: Any) -> Any:
    from npu_ce_jit.op.tracing import vmap

    return vmap.npu_cross_entropy_loss_backward_rule(*arguments)
