# SPDX-License-Identifier: Apache-2.0
"""The switch: while it is on, calls of torch's and of torch_npu's cross entropy run ours, where both take the call.

Torch's function gets other code, and torch_npu's operator other kernels. No object that a program can hold is
exchanged, so names that were imported before, tables keyed by the functions, pickles and `is` go on working.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
import torch.compiler.config
import torch.nn.functional as F
from torch import Tensor

from npu_ce_jit.api.cross_entropy import OPS
from npu_ce_jit.log import warn
from npu_ce_jit.patch import call_counts, redirected_calls
from npu_ce_jit.torch_compat import forget_graphs, redirect_operator

_OPERATOR = "npu_cross_entropy_loss"
_KEYS = ("AutogradPrivateUse1", "PrivateUse1")  # where torch_npu has registered its kernels


class _Function(NamedTuple):
    """Torch's `cross_entropy`, which torch.nn.functional may no longer hold."""

    object: Any
    code: CodeType
    redirecting_code: CodeType
    untouched: Callable[..., Tensor]  # a function of torch's code, globals and defaults


class _Switch:
    """What is redirected in this process.

    It is kept in torch's namespace of our operators, so that a second import of this package finds what the first one
    did: notebooks take modules out of sys.modules.
    """

    NAME = "_switch"

    def __init__(self) -> None:
        self.is_installed = False
        self.blocks = 0  # how many `installed()` are entered and not left
        self.function: _Function | None = None
        self.restore_operator: Callable[[], None] | None = None  # torch_npu's, where ours has taken its place
        self.tags: tuple[str, str] | None = None  # of torch.compile's caches: the user's, and ours in its place
        self.lock = threading.RLock()
        if hasattr(os, "register_at_fork"):  # a child must not find it held by a thread that it does not have
            release = self.lock.release
            os.register_at_fork(before=self.lock.acquire, after_in_parent=release, after_in_child=release)


_switch: _Switch = vars(OPS).get(_Switch.NAME) or _Switch()
setattr(OPS, _Switch.NAME, _switch)


def install() -> None:
    """Makes `F.cross_entropy` and, where torch_npu is imported, its `npu_cross_entropy_loss` run ours.

    It holds in the whole process until `uninstall()`, however often it was called, and for nn.CrossEntropyLoss and all
    else that calls one of the two. Calls that ours does not take go to torch or torch_npu, as before. Where torch_npu
    is imported later, call it again. No other thread may be in a call of torch_npu's operator then.
    """
    with _switch.lock:
        _switch.is_installed = True
        _follow()


def uninstall() -> None:
    """Undoes `install()`: all is as it was, unless a thread is inside an `installed()` block.

    A function that somebody has put in the place of `F.cross_entropy` meanwhile stays there. No other thread may be in
    a call of torch_npu's operator.
    """
    with _switch.lock:
        _switch.is_installed = False
        _follow()


@contextmanager
def installed() -> Iterator[None]:
    """`install()` for a block: on in all threads while any is inside one; what `install()` did outlasts it."""
    with _switch.lock:
        _switch.blocks += 1
    try:
        with _switch.lock:
            _follow()
        yield
    finally:
        with _switch.lock:
            _switch.blocks -= 1
            _follow()


def answers() -> dict[str, dict[str, Any]]:
    """For each function: `by`, the package that answers its calls ("none" where it is not defined); and of the calls
    that were redirected, how many were `ours`, and how many `passed_through`, by reason.
    """
    function, known = F.cross_entropy, _switch.function
    if not _is_torchs(function):
        who = _name(function)
    else:
        who = "npu_ce_jit" if known is not None and function.__code__ is known.redirecting_code else "torch"
    operator = "npu_ce_jit" if _switch.restore_operator else "torch_npu" if _torch_npu_has_operator() else "none"
    return {
        counts.name: {"by": by, "ours": counts.ours, "passed_through": dict(counts.passed_through)}
        for counts, by in ((call_counts.of_function, who), (call_counts.of_operator, operator))
    }


def _follow() -> None:
    """Redirects or restores, whichever the switch asks for. The caller holds the lock."""
    if _switch.is_installed or _switch.blocks:
        _redirect_function()
        _redirect_operator()
        _keep_compile_caches_apart()
    else:
        _restore_function()
        _restore_operator()
        _share_compile_caches()


def _redirect_function() -> None:
    if _switch.function is None:
        found: Any = F.cross_entropy
        if not _is_torchs(found):
            warn(
                f"npu_ce_jit: expected torch's own function in torch.nn.functional.cross_entropy, got {_name(found)}: "
                "it stays, and its calls are not redirected. Call npu_ce_jit.install() before what put it there."
            )
            return
        untouched = FunctionType(found.__code__, vars(F), found.__name__, found.__defaults__)
        _switch.function = _Function(found, found.__code__, _redirecting.__code__, untouched)
    function = _switch.function
    if function.object.__code__ is function.code:
        # torch.jit.script compiles source text, and gets the untouched function.
        function.object.__prepare_scriptable__ = torchs_cross_entropy
        function.object.__code__ = function.redirecting_code
        forget_graphs()


def _restore_function() -> None:
    function = _switch.function
    if function is not None and function.object.__code__ is function.redirecting_code:
        function.object.__code__ = function.code
        del function.object.__prepare_scriptable__
        forget_graphs()


def _redirecting(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Torch's function gets this code, which runs with the globals of torch.nn.functional, not of this module."""
    from npu_ce_jit.patch.redirected_calls import cross_entropy
    from npu_ce_jit.patch.switch import torchs_cross_entropy

    return cross_entropy(
        torchs_cross_entropy(), input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )


def torchs_cross_entropy() -> Callable[..., Tensor]:
    """F.cross_entropy as it is where nothing is redirected."""
    assert _switch.function is not None, "asked for by what is redirected"
    return _switch.function.untouched


def _is_torchs(function: Any) -> bool:
    """Whether a function was defined in torch.nn.functional, not put there by another package."""
    return getattr(function, "__globals__", None) is vars(F)


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', repr(function))}"


def _torch_npu_has_operator() -> bool:
    return "torch_npu" in sys.modules and hasattr(torch.ops.npu, _OPERATOR)


def _redirect_operator() -> None:
    if _switch.restore_operator is None and _torch_npu_has_operator():
        # The Meta kernel stays torch_npu's: where tensors are fake, the one under the Autograd key answers before it.
        ours = redirected_calls.npu_cross_entropy_loss
        _switch.restore_operator = redirect_operator("npu", _OPERATOR, _KEYS, ours)


def _restore_operator() -> None:
    if _switch.restore_operator is not None:
        _switch.restore_operator()
        _switch.restore_operator = None


def _keep_compile_caches_apart() -> None:
    """Tags torch.compile's caches on disk, which find a graph by the name of torch's function, not by its code."""
    if _switch.tags is None:
        tag = torch.compiler.config.cache_key_tag
        _switch.tags = tag, f"{tag}+npu_ce_jit"
        torch.compiler.config.cache_key_tag = _switch.tags[1]


def _share_compile_caches() -> None:
    if _switch.tags is not None:
        tag, ours = _switch.tags
        if torch.compiler.config.cache_key_tag == ours:  # else somebody has set another since
            torch.compiler.config.cache_key_tag = tag
        _switch.tags = None
