# SPDX-License-Identifier: Apache-2.0
"""The losses where each rank of a process group has some of the classes: tensor parallelism of the vocabulary.

They use torch.distributed's collectives: gloo on CPU, hccl on NPU. `import npu_ce_jit` does not import this module.
"""

from npu_ce_jit.parallel.cross_entropy import vocab_parallel_cross_entropy
from npu_ce_jit.parallel.linear_cross_entropy import vocab_parallel_linear_cross_entropy
from npu_ce_jit.parallel.linear_token_logprobs import vocab_parallel_linear_token_logprobs
from npu_ce_jit.parallel.token_logprobs import vocab_parallel_token_logprobs

__all__ = [
    "vocab_parallel_cross_entropy",
    "vocab_parallel_linear_cross_entropy",
    "vocab_parallel_linear_token_logprobs",
    "vocab_parallel_token_logprobs",
]
