# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and entropy from hidden states, forward and backward, against the loss and verl's chunks.

    python benchmarks/linear_token_logprobs.py [--rounds 5]

One interleaved run for each shape and dtype; medians of ratios, and the peak of what torch allocates, gradients
included. Fails where a bar is missed. verl's own function is measured where verl is installed; where it is not, the
same chunks, written from its formula.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from bars import LINEAR_GRID, LINEAR_NARROW, LINEAR_UNLISTED, Verdict
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.bench.timing import interleaved, median_ratio, peak_allocated

_MOST_TIME, _MOST_MEMORY = 1.15, 1.05  # in units of the loss
_VERLS_CHUNK = 512  # its default

Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    found = npu_ce_jit.linear_token_logprobs(hidden, head, target, return_entropy=True)
    return found.logprobs.sum() - found.entropy.sum()


def the_loss(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    return npu_ce_jit.linear_cross_entropy(hidden, head, target, reduction="none").sum()


class _Chunks(torch.autograd.Function):
    """FusedLinearForPPO's way: float32 probabilities of 512 rows at a time, once forward and once backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, head, target)
        found = []
        for x, y in _chunks(hidden, target):
            logits = F.linear(x, head).float()
            log_prob = logits.log_softmax(-1)
            entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
            found.append((log_prob.gather(-1, y[:, None])[:, 0], entropy))
        logprobs, entropies = (torch.cat(parts) for parts in zip(*found, strict=True))
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        hidden, head, target = ctx.saved_tensors
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head)
        of_chunks = zip(*(g.split(_VERLS_CHUNK) for g in (*grad_outputs, grad_hidden)), strict=True)
        for (x, y), (of_logprobs, of_entropy, to) in zip(_chunks(hidden, target), of_chunks, strict=True):
            logits = F.linear(x, head).float()
            p, log_prob = logits.softmax(-1), logits.log_softmax(-1)
            entropy = logits.logsumexp(-1) - (p * logits).sum(-1)
            one_hot = torch.zeros_like(logits).scatter_(-1, y[:, None], 1)
            of_logits = of_logprobs[:, None] * (one_hot - p)
            of_logits += p * (log_prob + entropy[:, None]) * -of_entropy[:, None]
            of_logits = of_logits.to(head.dtype)
            to.copy_(of_logits @ head)
            grad_head += of_logits.t() @ x
        return grad_hidden, grad_head, None


def _chunks(hidden: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(hidden.split(_VERLS_CHUNK), target.split(_VERLS_CHUNK), strict=True)


def of_verl(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    try:
        from verl.utils.experimental.torch_functional import FusedLinearForPPO
    except ImportError:
        logprobs, entropy = _Chunks.apply(hidden, head, target)
    else:
        logprobs, entropy = FusedLinearForPPO(_VERLS_CHUNK)(hidden, head, target)
    return logprobs.sum() - entropy.sum()


WAYS: dict[str, Step] = {"ours": ours, "the loss": the_loss, "verl": of_verl}
CELLS = [
    *((torch.float32, shape) for shape in LINEAR_GRID + LINEAR_UNLISTED),
    *((torch.bfloat16, shape) for shape in (*LINEAR_NARROW, (2053, 9001, 61))),
]


def verdicts(shape: tuple[int, ...], dtype: torch.dtype, rounds: int) -> list[Verdict]:
    rows, classes, features = shape
    hidden = torch.randn(rows, features).to(dtype).requires_grad_()
    head = (torch.randn(classes, features) / features**0.5).to(dtype).requires_grad_()
    target = torch.randint(classes, (rows,))

    def step(way: Step) -> Callable[[], object]:
        return lambda: torch.autograd.grad(way(hidden, head, target), (hidden, head))

    steps = {name: step(way) for name, way in WAYS.items()}
    peaks = {name: peak_allocated(call) for name, call in steps.items()}
    seconds = interleaved(steps, rounds)
    what = f"{rows} x {classes}, {features} features, {str(dtype).removeprefix('torch.')}"
    memory = peaks["ours"] / peaks["the loss"]
    time, faster = median_ratio(seconds, "ours", "the loss"), median_ratio(seconds, "verl", "ours")
    less = peaks["verl"] / peaks["ours"]
    return [
        Verdict(f"time in units of the loss's, {what}", f"<= {_MOST_TIME}", f"{time:.2f}", time <= _MOST_TIME),
        Verdict(f"peak in units of the loss's, {what}", f"<= {_MOST_MEMORY}", f"{memory:.2f}", memory <= _MOST_MEMORY),
        Verdict(f"verl's time in units of ours, {what}", "> 1", f"{faster:.2f}", faster > 1),
        Verdict(f"verl's peak in units of ours, {what}", "> 1", f"{less:.2f}", less > 1),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    found = [v for dtype, shape in CELLS for v in verdicts(shape, dtype, rounds)]
    for verdict in found:
        print(verdict.word, *verdict[:3], sep=" | ")
    sys.exit(not all(v.met for v in found))


if __name__ == "__main__":
    main()
