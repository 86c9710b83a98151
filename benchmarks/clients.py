# SPDX-License-Identifier: Apache-2.0
"""A training step of a transformers model, as it is and patched: CPU time and memory. Needs the extra [clients].

    python benchmarks/clients.py [rounds]

The model is a Llama of one small layer with frozen embeddings, so that the head and the loss are most of a step. Time
is the CPU time of forward and backward; the ratio is the median over rounds in which both run. Memory is a step's peak,
less that of a step without the head and less the head's gradient, over the bytes of the logits.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import npu_ce_jit
from npu_ce_jit.bench.timing import interleaved, median_ratio, peak_allocated

SHAPES = ((4, 512, 512, 32000), (4, 256, 512, 128256), (2, 509, 256, 50257))  # batch, length, hidden, vocabulary
DTYPES = (torch.float32, torch.bfloat16)


def llama(hidden: int, vocab: int, dtype: torch.dtype) -> Any:
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(dtype)
    model.model.embed_tokens.requires_grad_(False)
    return model


def trained(model: Any) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def step_of(model: Any, ids: torch.Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(model(ids, labels=ids, use_cache=False).loss, trained(model))


def body_of(model: Any, ids: torch.Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(model.model(ids)[0].sum(), trained(model), allow_unused=True)


def measure(batch: int, length: int, hidden: int, vocab: int, dtype: torch.dtype, rounds: int) -> str:
    ids = torch.randint(vocab, (batch, length))
    models = [llama(hidden, vocab, dtype) for _ in range(2)]
    npu_ce_jit.patch.transformers(models[1])
    steps = [step_of(model, ids) for model in models]
    seconds = interleaved(dict(zip(("transformers", "patched"), steps, strict=True)), rounds, clock=time.process_time)
    without_head = peak_allocated(body_of(models[0], ids)) + models[0].lm_head.weight.nbytes
    logits = batch * length * vocab * dtype.itemsize
    peaks = [(peak_allocated(step) - without_head) / logits for step in steps]
    ratio = median_ratio(seconds, "transformers", "patched")
    name = str(dtype).removeprefix("torch.")
    return f"| {batch} x {length} x {hidden} x {vocab} | {name} | {ratio:.2f}x | {peaks[0]:.2f} | {peaks[1]:.2f} |"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print("| batch x length x hidden x vocab | dtype | time, transformers / patched | memory, x logits | patched |")
    print("| --- | --- | --- | --- | --- |")
    for shape in SHAPES:
        for dtype in DTYPES:
            print(measure(*shape, dtype, rounds), flush=True)


if __name__ == "__main__":
    main()
