# SPDX-License-Identifier: Apache-2.0
"""Logits that are computed when they are first used, for models that return them beside their loss.

A head returns `DeferredLogits` in place of its product. What models do to logits on their way to the loss (a factor, a
softcap, a wider dtype) is noted and becomes an option of `linear_cross_entropy`. Any other operation computes the
logits, so that no operation of a model is missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from npu_ce_jit.api.cross_entropy import HALVES
from npu_ce_jit.api.linear_cross_entropy import linear_cross_entropy
from npu_ce_jit.torch_compat import is_autocast

# What heads do with their hidden states instead of the product, in this thread; None for the product.
_instead: ContextVar[Callable[[nn.Linear, Tensor], Tensor] | None] = ContextVar("npu_ce_jit_head", default=None)


@contextmanager
def heads(answer: Callable[[nn.Linear, Tensor], Tensor] | None) -> Iterator[None]:
    """While it is open, `head_forward` returns `answer(head, hidden)` instead of the product."""
    token = _instead.set(answer)
    try:
        yield
    finally:
        _instead.reset(token)


def head_forward(theirs: Callable[[Tensor], Tensor], head: nn.Linear, input: Tensor) -> Tensor:
    """A linear layer's forward, whose result `heads` can replace."""
    if torch.compiler.is_compiling():  # a graph cannot hold DeferredLogits
        return theirs(input)
    answer = _instead.get()
    return theirs(input) if answer is None else answer(head, input)


class _Noted(NamedTuple):
    """What was done to the product x: `outer * tanh(inner * x)`, or `inner * x` where outer is None; then a cast."""

    inner: float
    outer: float | None
    dtype: torch.dtype

    def scaled(self, factor: float) -> _Noted:
        if self.outer is None:
            return self._replace(inner=self.inner * factor)
        return self._replace(outer=self.outer * factor)

    def of(self, logits: Tensor) -> Tensor:
        if self.inner != 1.0:
            logits = logits * self.inner
        if self.outer is not None:
            logits = torch.tanh(logits) * self.outer
        return logits.to(self.dtype)

    def options(self) -> dict[str, Any]:
        """softcap and logit_scale of a loss: softcap * tanh(logit_scale * x / softcap)."""
        return {"softcap": self.outer, "logit_scale": self.inner * (1.0 if self.outer is None else self.outer)}


class _Product(NamedTuple):
    """The operands of the product, and the modes in which the head was called."""

    head: nn.Linear
    hidden: Tensor
    weight_version: int
    is_grad_enabled: bool
    autocast_dtype: torch.dtype | None  # where autocast was on

    def logits(self) -> Tensor:
        """Calls the head as a module, so that its hooks gather the parameters that ZeRO-3 or FSDP has sharded."""
        device = self.hidden.device.type
        autocast = torch.autocast(device, self.autocast_dtype, enabled=self.autocast_dtype is not None)
        with heads(None), torch.set_grad_enabled(self.is_grad_enabled), autocast:
            if self.head.weight._version != self.weight_version:
                raise RuntimeError(
                    "expected the output head as it was when the model was called, got one that was changed since: "
                    "its logits are made when they are first read; read outputs.logits before the optimizer's step"
                )
            return self.head(self.hidden)  # type: ignore[no-any-return]


class DeferredLogits(Tensor):
    """`[..., C]` logits of a head, with their shape, dtype and device; once computed, they may require a gradient."""

    _product: _Product
    _noted: _Noted
    _whole: Tensor | None  # the logits, once they are computed

    @classmethod
    def _made_of(cls, product: _Product, noted: _Noted) -> DeferredLogits:
        shape, device = (*product.hidden.shape[:-1], product.head.out_features), product.hidden.device
        self: DeferredLogits = Tensor._make_wrapper_subclass(cls, shape, dtype=noted.dtype, device=device)
        self._product, self._noted, self._whole = product, noted, None
        return self

    @classmethod
    def of(cls, head: nn.Linear, hidden: Tensor) -> DeferredLogits:
        """What a head's forward returns instead of its product."""
        device, dtype = hidden.device.type, hidden.dtype
        autocast = torch.get_autocast_dtype(device) if is_autocast(device) else None
        if autocast is not None and dtype is not torch.float64:
            dtype = autocast
        product = _Product(head, hidden, head.weight._version, torch.is_grad_enabled(), autocast)
        return cls._made_of(product, _Noted(1.0, None, dtype))

    def loss(self, target: Tensor, **options: Any) -> Tensor:
        """`linear_cross_entropy` of the hidden states, called as the head's forward: hooks gather the head's weight."""

        def instead(head: nn.Linear, hidden: Tensor) -> Tensor:
            return linear_cross_entropy(  # type: ignore[return-value]
                hidden, head.weight, target, linear_bias=head.bias, **self._noted.options(), **options
            )

        with heads(instead):
            return self._product.head(self._product.hidden)  # type: ignore[no-any-return]

    def is_made(self) -> bool:
        """Whether the logits have been computed, and so may have been changed."""
        return self._whole is not None

    def whole(self) -> Tensor:
        """The logits, computed at the first call."""
        if self._whole is None:
            self._whole = self._noted.of(self._product.logits())
        return self._whole

    def _with(self, noted: _Noted | None) -> DeferredLogits | None:
        return None if noted is None or self._whole is not None else self._made_of(self._product, noted)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name == "__get__":
            name = func.__self__.__name__
        first = args[0] if args else None
        if isinstance(first, DeferredLogits):
            if name in _METADATA and first._whole is None:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs)
            if name in _NOTED:
                found = first._with(_NOTED[name](first._noted, *args[1:], **kwargs))
                if found is not None:
                    return found
        args, kwargs = tree_map_only(DeferredLogits, DeferredLogits.whole, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(DeferredLogits, DeferredLogits.whole, (args, kwargs or {}))
        return func(*args, **kwargs)


_METADATA = {
    "shape", "dtype", "device", "layout", "ndim", "requires_grad", "grad_fn", "is_leaf", "is_cuda", "is_cpu", "is_npu",
    "is_sparse", "is_quantized", "is_meta", "is_nested", "size", "dim", "numel", "ndimension", "is_floating_point",
    "is_complex", "__len__", "__hash__", "element_size",
}  # fmt: skip


def _times(noted: _Noted, other: Any, **keywords: Any) -> _Noted | None:
    is_factor = type(other) in (int, float) and 0.0 < other < math.inf and not keywords
    return noted.scaled(float(other)) if is_factor else None


def _over(noted: _Noted, other: Any, **keywords: Any) -> _Noted | None:
    is_divisor = type(other) in (int, float) and 0.0 < other < math.inf and not keywords
    return noted.scaled(1.0 / other) if is_divisor else None


def _tanh(noted: _Noted, **keywords: Any) -> _Noted | None:
    return noted._replace(outer=1.0) if noted.outer is None and not keywords else None


def _float(noted: _Noted, **keywords: Any) -> _Noted | None:
    return None if keywords else _cast(noted, torch.float32)


def _cast(noted: _Noted, *to: Any, dtype: Any = None, **keywords: Any) -> _Noted | None:
    """Notes a cast only where it rounds nothing."""
    (wider,) = to if len(to) == 1 and dtype is None else (dtype,) if not to else (None,)
    if keywords or not (wider is noted.dtype or (wider is torch.float32 and noted.dtype in HALVES)):
        return None
    return noted._replace(dtype=wider)


def _contiguous(noted: _Noted, **keywords: Any) -> _Noted | None:
    return None if keywords else noted


_NOTED: dict[str, Callable[..., _Noted | None]] = {
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), _times),
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__"), _over),
    "tanh": _tanh,
    "float": _float,
    "to": _cast,
    "contiguous": _contiguous,
}
