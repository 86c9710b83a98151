#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a tiny language model and prints its loss, step by step.

    python examples/train_tiny_lm.py                            # one process
    python examples/train_tiny_lm.py --loss torch               # the same with F.cross_entropy: the same curve
    torchrun --nproc-per-node 2 examples/train_tiny_lm.py       # each rank has half of the vocabulary: the same curve

Runs on NPUs (hccl) if there are any, else on the CPU (gloo).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from npu_ce_jit import cross_entropy
from npu_ce_jit.parallel import vocab_parallel_cross_entropy

VOCABULARY, WIDTH, LENGTH, BATCH = 1009, 64, 32, 8


class TinyLm(nn.Module):
    """Two attention layers over tokens, and this rank's part of the output layer."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        # Every rank draws the whole layer, so that all agree, and keeps its part. 1009 is odd: the parts are uneven.
        whole = nn.Linear(WIDTH, VOCABULARY)
        self.weight, self.bias = (
            nn.Parameter(part.detach().tensor_split(ranks)[rank].clone()) for part in (whole.weight, whole.bias)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """`[rows, classes of this rank]` logits from `[BATCH, LENGTH]` tokens."""
        causal = nn.Transformer.generate_square_subsequent_mask(LENGTH, device=tokens.device)
        hidden = self.tokens(tokens) + self.places.weight
        hidden = self.layers(hidden, mask=causal, is_causal=True).flatten(0, 1)
        if dist.is_initialized() and hidden.requires_grad:
            hidden.register_hook(summed_over_ranks)  # each rank has only its classes' contribution
        return F.linear(hidden, self.weight, self.bias)


def summed_over_ranks(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    dist.all_reduce(gradient)
    return gradient


def batches(steps: int) -> list[Tensor]:
    """Token sequences in which each token is one of the four that may follow the one before it."""
    draw = torch.Generator().manual_seed(1)
    followers = torch.randint(VOCABULARY, (VOCABULARY, 4), generator=draw)
    tokens = torch.randint(VOCABULARY, (steps, BATCH, 1), generator=draw)
    for _ in range(LENGTH):
        choice = torch.randint(4, (steps, BATCH), generator=draw)
        tokens = torch.cat((tokens, followers[tokens[..., -1], choice][..., None]), -1)
    return list(tokens)


def train(loss_of: Callable[[Tensor, Tensor], Tensor], device: torch.device, steps: int) -> list[float]:
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    model = TinyLm(rank, ranks).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    curve = []
    for batch in batches(steps):
        tokens = batch.to(device)
        loss = loss_of(model(tokens[:, :-1]), tokens[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=("npu_ce_jit", "torch"), default="npu_ce_jit")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="print the whole curve, for a program")
    arguments = parser.parse_args()
    has_npu = hasattr(torch, "npu") and torch.npu.is_available()
    device = torch.device("npu", int(os.environ.get("LOCAL_RANK", "0"))) if has_npu else torch.device("cpu")
    is_parallel = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_parallel and arguments.loss == "torch":
        parser.error("--loss torch is for one process: F.cross_entropy needs all classes of a row")
    if is_parallel:
        dist.init_process_group("hccl" if has_npu else "gloo")
    ours = vocab_parallel_cross_entropy if is_parallel else cross_entropy
    curve = train(F.cross_entropy if arguments.loss == "torch" else ours, device, arguments.steps)
    if not is_parallel or dist.get_rank() == 0:
        if arguments.json:
            print(json.dumps(curve))
        else:
            for step in range(0, len(curve), 10):
                print(f"step {step:4}  loss {curve[step]:.4f}")
            print(f"last {len(curve) - 1:5}  loss {curve[-1]:.4f}")
    if is_parallel:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
