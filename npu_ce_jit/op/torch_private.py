# SPDX-License-Identifier: Apache-2.0
"""The private parts of torch on which the operators' derivatives and registration rely.

A `torch.autograd.Function` under the Autograd key fails inside torch.func transforms, because `Function.apply` then
restarts the stack of transforms, although the dispatcher has already taken this level off it. Its single-level apply,
under `enable_single_level_autograd_function`, applies at this level alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from npu_ce_jit.torch_compat import fake_options, has_saved_tensors_hooks, single_level

# True inside torch.func.grad, vmap, jvp and the like. An alias, not a wrapper: each loss calls it several times.
functorch_is_active = torch._C._are_functorch_transforms_active


def is_batched_gradient(tensor: Tensor | None) -> bool:
    """Whether it is a batch that looks like one gradient: `is_grads_batched`, `vectorize` of torch.autograd.functional.

    These run torch's older vmap, which functorch does not know about. Torch loops over our operators there.
    """
    return tensor is not None and torch._C._functorch.is_legacy_batchedtensor(tensor)


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether one of `tensors` has a forward-mode tangent.

    The tensors are asked: Python's own count of levels misses a level that a graph of torch.compile enters.
    """
    if torch.compiler.is_dynamo_compiling():  # compiled autograd traces this line; it has no forward mode
        return False
    with torch._C._DisableTorchDispatch():  # unpacking makes a view, which dispatch modes must not see
        return any(
            # Batched gradients have none: the older vmap batches tangents, never their primals.
            t is not None and not is_batched_gradient(t) and torch._VF._unpack_dual(t, level=0)[1] is not None
            for t in tensors
        )


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor, by its module's name: importing that module takes longer than importing this package."""
    return type(tensor).__module__.startswith("torch.distributed.tensor")


def is_differentiating(*tensors: Tensor | None) -> bool:
    """Whether a call on `tensors` must be recorded: by reverse mode, forward mode or a transform."""
    if functorch_is_active():
        return True
    if torch.is_grad_enabled():
        for tensor in tensors:  # any() would start a generator at each call
            if tensor is not None and tensor.requires_grad:
                return True
    return has_tangent(*tensors)


def needs_registered_operators(tensor: Tensor) -> bool:
    """Whether a call on `tensor` needs registered operators: a `torch.autograd.Function` with only a backward fails.

    So it is under transforms, in forward mode, and in torch.export, whose graph is to hold registered operators.
    """
    is_exporting = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    return is_exporting or functorch_is_active() or has_tangent(tensor)


def apply_at_this_level(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply` from within a kernel of the Autograd key, with every argument given.

    Outside of transforms too it bypasses `Function.apply`, which inspects the signature of `forward` at each call: a
    third of the time of a small loss.
    """
    if functorch_is_active():
        # Imported here: it pulls in functorch, which an eager training step never needs.
        from torch._functorch.utils import enable_single_level_autograd_function

        with enable_single_level_autograd_function():
            return single_level(function).apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


def below_autograd(op: Any, *arguments: Any) -> Any:
    """Calls an operator past its Autograd kernel."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def below_this_level(op: Any, *arguments: Any) -> Any:
    """Calls an operator from the forward of a Function: past its Autograd kernel at this level, not at outer ones.

    A Function's forward runs with both modes of differentiation off. Left off, they would silently cut an outer
    transform's derivative of what an inner one computed.
    """
    if functorch_is_active():
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return below_autograd(op, *arguments)
    return below_autograd(op, *arguments)


def tangent_for_outer_levels(formula: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """Evaluates `formula(*tensors)` within a Function's jvp, so that an outer forward mode differentiates it too.

    jvp runs with forward mode off. With it on, this level's own tangents would be differentiated again, so they are
    taken off the tensors first.
    """
    if not functorch_is_active():
        return formula(*tensors)
    with forward_ad._set_fwd_grad_enabled(True):
        return formula(*(None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in tensors))


def is_plain_eager(tensor: Tensor) -> bool:
    """A real tensor in a plain eager step: no tracing, transform, dispatch mode, tangent or hook on saved tensors."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not functorch_is_active()
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not has_saved_tensors_hooks()
        and not has_tangent(tensor)
    )


@contextmanager
def outside_every_mode() -> Iterator[None]:
    """Turns off the transforms, modes, autocast, inference mode and gradient recording that are on in this thread.

    A new thread would have none of them either, but also another current stream, and not this one's kernels on trial.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch._C._DisableAutocast(),
        torch._C._DisableFuncTorch(),
        torch._C._DisableTorchDispatch(),
        torch._C.DisableTorchFunction(),
    ):
        yield


def is_inside_backward() -> bool:
    """Whether autograd's engine is running: a forward is a recomputation then."""
    return torch._C._current_graph_task_id() != -1


def keeps_graph() -> bool:
    """Whether the backward that is running leaves its graph for another one (`retain_graph`)."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


def register_fake(library: torch.library.Library, qualified_name: str, fake: Callable[..., Any]) -> None:
    """As torch.library.register_fake, which takes 1 ms a call (of an import's 20) to find its caller's source line."""
    entry = torch._library.simple_registry.singleton.find(qualified_name)
    library._registration_handles.append(entry.fake_impl.register(fake, __name__, **fake_options(library)))


def register_vmap(library: torch.library.Library, qualified_name: str, rule: Callable[..., Any]) -> None:
    """As torch.library.register_vmap, which takes 2 of an import's 20 ms to look through the schemas."""

    def batched(_keyset: Any, *arguments: Any) -> Any:
        from torch._functorch.autograd_function import custom_function_call_vmap_helper
        from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

        operator = torch._library.utils.lookup_op(qualified_name)
        interpreter: Any = retrieve_current_functorch_interpreter()
        return custom_function_call_vmap_helper(interpreter, rule, operator, *arguments)

    library.impl(qualified_name.partition("::")[2], batched, "FuncTorchBatched", with_keyset=True)


def resolve_group(name: str) -> torch.distributed.ProcessGroup:
    """The process group of this name, as torch's functional collectives look theirs up."""
    return torch.distributed.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]
