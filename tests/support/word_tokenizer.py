# SPDX-License-Identifier: Apache-2.0
"""A tokenizer with one word for each number, for trainers that need text: nothing is downloaded."""

from __future__ import annotations

from typing import Any

from frameworks import VOCAB
from torch import Tensor


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w2", bos_token="w1")


def text(row: Tensor) -> str:
    """The text that the tokenizer encodes as this row."""
    return " ".join(f"w{int(number)}" for number in row)
