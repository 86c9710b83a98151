# SPDX-License-Identifier: Apache-2.0
"""`token_logprobs` with entropy, forward and backward, against the loss alone and what trainers write in torch.

    python benchmarks/token_logprobs.py [rows] [classes]

One interleaved run for each dtype; medians of ratios, and the peak of what torch allocates. Fails where a bar is
missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from bars import Verdict
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.bench.timing import interleaved, median_ratio, peak_allocated

ROUNDS = 9
SEQUENCES = 4
MOST_OF_THE_LOSS = 1.1
LEAST_OF_TRAINERS = 3.0

Step = Callable[[Tensor, Tensor], Tensor]


def ours(logits: Tensor, target: Tensor) -> Tensor:
    found = npu_ce_jit.token_logprobs(logits, target, return_entropy=True)
    return found.logprobs.sum() + found.entropy.sum()


def loss_alone(logits: Tensor, target: Tensor) -> Tensor:
    return npu_ce_jit.cross_entropy(
        logits.flatten(0, 1), target.flatten(), reduction="none", loss_dtype=torch.float32
    ).sum()


def of_verl(logits: Tensor, target: Tensor) -> Tensor:
    """logprobs_from_logits_v2 (each sequence by logsumexp in float32, log_softmax in halves), entropy_from_logits."""
    if logits.dtype is torch.float32:
        of_target = logits.gather(-1, target[..., None])[..., 0]
        logprobs = of_target - torch.stack([logits_of_one.logsumexp(-1) for logits_of_one in logits])
    else:
        logprobs = torch.stack([_selected(x, y) for x, y in zip(logits, target, strict=True)])
    probs = logits.softmax(-1)
    entropy = logits.logsumexp(-1) - (probs * logits).sum(-1)
    return logprobs.sum() + entropy.sum()


def of_trl(logits: Tensor, target: Tensor) -> Tensor:
    """selective_log_softmax, a sequence at a time, and the entropy of chunks of 128 rows."""
    logprobs = torch.stack([_selected(x, y) for x, y in zip(logits, target, strict=True)])
    entropies = [_entropy(chunk) for chunk in logits.flatten(0, 1).split(128)]
    return logprobs.sum() + torch.cat(entropies).sum()


def _selected(logits: Tensor, target: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]


def _entropy(logits: Tensor) -> Tensor:
    log_prob = logits.log_softmax(-1)
    return -(log_prob.exp() * log_prob).sum(-1)


WAYS: dict[str, Step] = {"ours": ours, "the loss alone": loss_alone, "verl": of_verl, "trl": of_trl}


def verdicts(rows: int, classes: int, dtype: torch.dtype) -> list[Verdict]:
    logits = torch.randn(SEQUENCES, rows // SEQUENCES, classes).to(dtype).requires_grad_()
    target = torch.randint(classes, logits.shape[:-1])
    size = logits.numel() * logits.element_size()

    def step(way: Step) -> Callable[[], object]:
        return lambda: torch.autograd.grad(way(logits, target), logits)

    steps = {name: step(way) for name, way in WAYS.items()}
    seconds = interleaved(steps, ROUNDS)
    peaks = {name: peak_allocated(call, warm_up=False) / size for name, call in steps.items()}
    what = f"{rows} x {classes} {str(dtype).removeprefix('torch.')}"
    found = []
    for name, bar in (("the loss alone", None), ("verl", LEAST_OF_TRAINERS), ("trl", LEAST_OF_TRAINERS)):
        ratio = median_ratio(seconds, "ours", name) if bar is None else median_ratio(seconds, name, "ours")
        held = f"peak {peaks['ours']:.2f} x logits, theirs {peaks[name]:.2f}"
        if bar is None:
            text = f"token_logprobs with entropy in units of the loss alone, {what}"
            found.append(Verdict(text, f"<= {MOST_OF_THE_LOSS}", f"{ratio:.2f}; {held}", ratio <= MOST_OF_THE_LOSS))
        else:
            text = f"{name}'s way in units of token_logprobs with entropy, {what}"
            found.append(Verdict(text, f">= {bar}", f"{ratio:.2f}; {held}", ratio >= bar))
    return found


def main() -> None:
    rows, classes = (int(a) for a in (*sys.argv[1:], *("1024", "128256")[len(sys.argv) - 1 :]))
    torch.manual_seed(0)
    found = [v for dtype in (torch.float32, torch.bfloat16) for v in verdicts(rows, classes, dtype)]
    for verdict in found:
        print(*verdict, sep=" | ")
    sys.exit(not all(v[-1] for v in found))


if __name__ == "__main__":
    main()
