# SPDX-License-Identifier: Apache-2.0
"""The functions by which frameworks score tokens, as they are and patched: CPU time and memory, forward and backward.

    python benchmarks/client_functions.py [rounds]

Each is called as its framework calls it, with its default options, and once more with its `npu_ce_jit.patch` in effect.
Needs the extra [clients], and verl and Megatron-core for their rows; a framework that is not installed has no row.
Memory is the peak of what torch allocates, gradients included, over the bytes of the logits. The last column says
where ours is slower or holds more.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from tables import table
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.bench.timing import interleaved, median_ratio, peak_allocated
from npu_ce_jit.patch import Patch

SHAPES = ((1021, 256, 17011), (509, 127, 50257), (2053, 64, 8081))  # rows, hidden, vocabulary
DTYPES = (torch.float32, torch.bfloat16)

Score = Callable[[Tensor, Tensor, Tensor], Tensor]  # of hidden states, the head and labels


class Client(NamedTuple):
    name: str
    needs: tuple[str, ...]
    patch: Callable[[], Patch]
    function: Callable[[], Callable[..., Any]]  # returns the one that the framework has now: its own, or ours
    score: Callable[[Callable[..., Any]], Score]
    from_logits: bool = False


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _trl(function: Callable[..., Any]) -> Score:
    def score(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        chunk = _module("trl.trainer.utils")._CHUNKED_LOGPROB_CHUNK_SIZE
        logprobs, entropy, *_ = function(hidden, head, None, labels, 1.0, chunk, None, 1.0, ("log_probs", "entropy"))
        return logprobs.sum() - entropy.sum()

    return score


def _verl_from_hidden(function: Callable[..., Any]) -> Score:
    module = _module("verl.utils.experimental.torch_functional").FusedLinearForPPO()

    def score(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        logprobs, entropy = function(module, hidden, head, labels)
        return logprobs.sum() - entropy.sum()

    return score


def _of_logits(function: Callable[..., Any]) -> Score:
    return lambda hidden, _head, labels: function(hidden, labels).sum()


CLIENTS = (
    Client(
        "trl's ChunkedLogProbFunction, with entropy", ("trl",), npu_ce_jit.patch.trl,
        lambda: _module("trl.kernels.chunked_logprob").ChunkedLogProbFunction.apply, _trl,
    ),
    Client(
        "verl's FusedLinearForPPO", ("verl",), npu_ce_jit.patch.verl,
        lambda: _module("verl.utils.experimental.torch_functional").FusedLinearForPPO.forward, _verl_from_hidden,
    ),
    Client(
        "verl's logprobs_from_logits", ("verl",), npu_ce_jit.patch.verl,
        lambda: _module("verl.utils.torch_functional").logprobs_from_logits, _of_logits, True,
    ),
    Client(
        "verl's entropy_from_logits", ("verl",), npu_ce_jit.patch.verl,
        lambda: _module("verl.utils.torch_functional").entropy_from_logits,
        lambda function: lambda hidden, _head, _labels: function(hidden).sum(), True,
    ),
    Client(
        "Megatron-core's vocab_parallel_cross_entropy, one rank", ("megatron.core",), npu_ce_jit.patch.megatron,
        lambda: _module("megatron.core.tensor_parallel").vocab_parallel_cross_entropy, _of_logits, True,
    ),
)  # fmt: skip


def measured(client: Client, shape: tuple[int, int, int], dtype: torch.dtype, rounds: int) -> list[str]:
    rows, features, classes = shape
    torch.manual_seed(0)
    sizes = [(1, rows, classes)] if client.from_logits else [(rows, features), (classes, features)]
    leaves = [torch.randn(size).to(dtype).requires_grad_() for size in sizes]
    labels = torch.randint(classes, sizes[0][:-1])

    def step(score: Score) -> Callable[[], object]:
        def run() -> object:
            # New tensors, as some functions write the gradient over logits that are no leaf.
            inputs = [leaf * 1 for leaf in leaves] if client.from_logits else leaves
            return torch.autograd.grad(score(inputs[0], inputs[-1], labels), leaves)

        return run

    theirs = step(client.score(client.function()))
    with client.patch():
        steps = {"theirs": theirs, "ours": step(client.score(client.function()))}
        seconds = interleaved(steps, rounds, clock=time.process_time)
        peaks = {name: peak_allocated(call, warm_up=False) for name, call in steps.items()}
    faster = median_ratio(seconds, "theirs", "ours")
    logits = rows * classes * dtype.itemsize
    verdicts = [word for word, lost in (("slower", faster < 1), ("more", peaks["ours"] > peaks["theirs"])) if lost]
    held = [f"{peaks[name] / logits:.2f}" for name in ("theirs", "ours")]
    shown = f"{rows} x {features} x {classes}" if not client.from_logits else f"{rows} x {classes}"
    return [client.name, shown, str(dtype).removeprefix("torch."), f"{faster:.2f}x", *held, " and ".join(verdicts)]


def lines(rounds: int) -> Iterator[list[str]]:
    for client in CLIENTS:
        try:
            for name in client.needs:
                _module(name)
        except ImportError as error:
            print(f"no row of {client.name}: {error}", file=sys.stderr)
            continue
        for shape in SHAPES:
            for dtype in DTYPES:
                yield measured(client, shape, dtype, rounds)
                print(f"measured {client.name}", file=sys.stderr, flush=True)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            import megatron.core.parallel_state as mpu
        except ImportError:
            pass
        else:
            mpu.initialize_model_parallel()
        found = list(lines(rounds))
        dist.destroy_process_group()
    titles = ["function", "rows x hidden x vocabulary", "dtype", "faster", "memory, x logits: theirs", "ours", ""]
    print(table(titles, found))
    if lost := [line for line in found if line[-1]]:
        sys.exit(f"{len(lost)} of {len(found)} rows are slower or hold more")


if __name__ == "__main__":
    main()
