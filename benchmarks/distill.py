# SPDX-License-Identifier: Apache-2.0
"""Distillation from hidden states, against the same losses over whole logits: time and peak memory, on the CPU.

    python benchmarks/distill.py [--rounds 5]

A step is forward and backward, with gradients for the student's hidden states and head. The peers are what one writes
in plain torch, in float32 after two-byte products, as trl does. Times are ratios within interleaved rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tables import table
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.bench.timing import interleaved, median_ratio, peak_allocated, undisturbed

_K = 64


class Models(NamedTuple):
    student: Tensor
    student_head: Tensor
    teacher: Tensor
    teacher_head: Tensor


Loss = Callable[[Models], Tensor]


def our_jsd(on: Models) -> Tensor:
    return npu_ce_jit.linear_kl_div(*on, beta=0.5)


def our_kl(on: Models) -> Tensor:
    return npu_ce_jit.linear_kl_div(*on)


def our_topk(on: Models) -> Tensor:
    log_t, indices = npu_ce_jit.linear_topk_logprobs(on.teacher, on.teacher_head, _K)
    log_s = npu_ce_jit.linear_selected_logprobs(on.student, on.student_head, indices)
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean()


def both_log_softmax(on: Models) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        log_t = F.linear(on.teacher, on.teacher_head).float().log_softmax(-1)
    return F.linear(on.student, on.student_head).float().log_softmax(-1), log_t


def their_kl(on: Models) -> Tensor:
    return F.kl_div(*both_log_softmax(on), reduction="batchmean", log_target=True)


def their_jsd(on: Models) -> Tensor:
    log_s, log_t = both_log_softmax(on)
    half = torch.tensor(0.5).log()
    log_m = torch.logaddexp(log_s + half, log_t + half)
    kl = partial(F.kl_div, log_m, reduction="batchmean", log_target=True)
    return 0.5 * kl(log_t) + 0.5 * kl(log_s)


def their_topk(on: Models) -> Tensor:
    log_s, log_t = both_log_softmax(on)
    log_t, indices = log_t.topk(_K)
    return (log_t.exp() * (log_t - log_s.gather(-1, indices))).sum(-1).mean()


PAIRS: dict[str, tuple[Loss, Loss]] = {
    "Jensen-Shannon": (our_jsd, their_jsd),
    "forward KL": (our_kl, their_kl),
    f"top-{_K} forward KL": (our_topk, their_topk),
}
# Rows, the student's and the teacher's features, classes.
SHAPES = [(1021, 127, 257, 9001), (251, 256, 512, 17011)]


def models(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Models:
    rows, features, of_teacher, classes = shape
    sizes = ((rows, features), (classes, features), (rows, of_teacher), (classes, of_teacher))
    on = Models(*(torch.randn(n, size).mul(3 / size**0.5 if n == classes else 1).to(dtype) for n, size in sizes))
    on.student.requires_grad_()
    on.student_head.requires_grad_()
    return on


def step(loss: Loss, on: Models) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(on), (on.student, on.student_head))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    lines = []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            with undisturbed():
                on = models(shape, dtype)
                for name, (ours, theirs) in PAIRS.items():
                    calls = {"ours": partial(step, ours, on), "theirs": partial(step, theirs, on)}
                    seconds = interleaved(calls, rounds)
                    logits = shape[0] * shape[3] * dtype.itemsize
                    peaks = [peak_allocated(call, warm_up=False) / logits for call in calls.values()]
                    faster = median_ratio(seconds, of="theirs", to="ours")
                    lines.append(
                        [name, " x ".join(map(str, shape)), str(dtype).removeprefix("torch."), f"{faster:.2f}x",
                         *(f"{peak:.2f}" for peak in peaks)]
                    )  # fmt: skip
                    print(f"measured {name} of {shape} in {dtype}", flush=True)
    titles = ["loss", "N x H x H' x V", "dtype", "faster than whole logits", "memory, x logits", "with whole logits"]
    print(table(titles, lines))


if __name__ == "__main__":
    main()
