# SPDX-License-Identifier: Apache-2.0
"""The rows of docs/compatibility.md, and what the documentation of each peer says about them."""

from __future__ import annotations

PEERS = ("torch_npu", "F.cross_entropy", "flash-attn", "Liger", "Apple CCE")
TOKENS = "Log-probabilities of tokens"
PEERS_OF = {TOKENS: ("torch_npu", "verl", "trl", "Liger", "Apple CCE")}  # for groups whose peers differ
SOURCES = {
    "torch_npu": (
        "the page of `torch_npu.npu_cross_entropy_loss` (Ascend Extension for PyTorch, API reference): arguments, "
        "outputs, and its limits on gradients; and the pages of `npu_fused_linear_online_max_sum`, "
        "`npu_fused_cross_entropy_loss_with_max_sum` and `npu_fused_linear_cross_entropy_loss_with_max_sum_backward`, "
        "which need CANN 9.0"
    ),
    "F.cross_entropy": (
        "docs.pytorch.org: `torch.nn.functional.cross_entropy` and `linear_cross_entropy` of torch 2.13, and the pages "
        "on torch.func, torch.export and AMP"
    ),
    "flash-attn": (
        "the docstrings of `flash_attn.losses.cross_entropy.CrossEntropyLoss` and "
        "`flash_attn.ops.triton.cross_entropy.cross_entropy_loss`, github.com/Dao-AILab/flash-attention"
    ),
    "Liger": (
        "README, and signatures of liger-kernel 0.8.5: `LigerCrossEntropyLoss`, `LigerFusedLinearCrossEntropyLoss`, "
        "`LigerFusedLinearScaledCrossEntropyFunction` and its TP form, `LigerVocabParallelCrossEntropy`, "
        "`LigerFusedLinearJSD`, `LigerFusedLinearKLDivLoss`; github.com/linkedin/Liger-Kernel"
    ),
    "Apple CCE": "README of github.com/apple/ml-cross-entropy",
    "verl": (
        "the sources of verl 0.9.1: verl/utils/torch_functional.py, verl/utils/experimental/torch_functional.py "
        "(FusedLinearForPPO), verl/utils/kernel/linear_cross_entropy.py, verl/utils/megatron/tensor_parallel.py"
    ),
    "trl": (
        "the sources of trl 1.16.0: selective_log_softmax and entropy_from_logits of trl/trainer/utils.py, "
        "ChunkedLogProbFunction of trl/kernels/chunked_logprob.py"
    ),
}

_NPU_FUSED = "16 bits, no smoothing: npu_fused_linear_online_max_sum and what follows it"
_NPU_FUSED_PARTS = "the same, with collectives of one's own"

# Feature -> cells, in the order of PEERS or PEERS_OF.
Rows = dict[str, tuple[str, str, str, str, str]]
_NOBODY_SAYS = ("-", "-", "-", "-", "-")
_TORCH = ("-", "yes", "-", "-", "-")
_REDIRECTION = ("no", "no", "no", "no", "no")

GROUPS: dict[str, Rows] = {
    "The loss": {
        "weights, ignore_index, label smoothing, every reduction": (
            "without gradients only", "yes", "no weights", "yes", "no weights, no smoothing",
        ),
        "z-loss": ("no: declared, not enabled", "no", "yes, its value without gradient", "yes", "from its lse"),
        "softcap and logit scale": ("no", "no", "logit scale", "softcap", "softcap"),
        "lse and entropy beside the loss, differentiable": ("no", "no", "no", "no", "lse"),
        "argmax beside the loss": ("no", "no", "no", "yes", "no"),
        "log_prob beside the loss, differentiable": ("without gradient", "no", "no", "no", "no"),
        "logits [C] and [N, C, d1, ...]": ("no", "yes", "no", "-", "-"),
        "int32 targets, logits of any strides": ("no: int64", "no: int64", "-", "-", "-"),
        "class probabilities as targets": ("no", "yes", "no", "no", "no"),
        "float32 loss from half logits": ("no", "under autocast", "yes, always", "-", "-"),
        "half gradients as if made in float32": _NOBODY_SAYS,
        "NaN in an ignored row adds nothing": _NOBODY_SAYS,
        "the same bits on any number of threads": _NOBODY_SAYS,
        "gradient written over the logits": ("no", "no", "yes", "yes, always", "-"),
        "torch_npu's call, by name and position": ("yes", "no", "no", "no", "no"),
    },
    "From hidden states": {
        "loss from hidden states": (_NPU_FUSED, "F.linear_cross_entropy", "no", "yes", "yes"),
        "logits never whole": ("on request", "with options", "no", "yes", "yes"),
        "calls of torch's F.linear_cross_entropy": ("no", "yes", "no", "no", "no"),
        "lse, entropy, argmax and z-loss from hidden states": ("no", "no", "no", "z-loss, argmax", "lse"),
        "token accuracy and predicted tokens without logits": ("no", "no", "no", "yes", "no"),
        "divergences of two models from hidden states": ("no", "no", "no", "KL, JSD", "no"),
        "log-probabilities of chosen classes from hidden states": ("no", "no", "no", "beside the loss", "no"),
    },
    TOKENS: {
        "log-probabilities and entropy of tokens from logits": (
            "log-probabilities", "in two passes", "in two passes without Triton", "no", "no",
        ),
        "log-probabilities and entropy from hidden states": (
            "log-probabilities", "yes", "yes", "LigerFusedLinearScaledCrossEntropyFunction", "log-probabilities",
        ),
        "float32 log-probabilities of half logits": (
            "no", "with flash-attn", "with Triton", "yes, from hidden states", "-",
        ),
        "temperature": ("no", "from hidden states", "yes", "yes", "-"),
        "tokens that are ignored: 0, and no gradient": ("yes", "no", "row_mask", "yes", "-"),
        "sum of squared probabilities, differentiable": ("no", "yes", "its log, without gradient", "no", "-"),
        "tokens' gradient written over the logits": ("no", "with flash-attn", "no", "no", "-"),
        "log-probabilities and entropy over ranks that share the vocabulary": (
            _NPU_FUSED_PARTS, "in three functions", "no", "from hidden states", "log-probabilities",
        ),
        "a row's bits wherever it stands": _NOBODY_SAYS,
    },
    "Derivatives": {
        "torch.func: grad, vjp, jvp, vmap, jacrev, jacfwd, hessian, and their compositions": _TORCH,
        "double backward": _TORCH,
        "forward AD": _TORCH,
        "compiled autograd": _TORCH,
        "torch.compile over torch.func": _TORCH,
        "torch.compile over forward AD": _NOBODY_SAYS,
        "activation checkpointing": _TORCH,
        "selective activation checkpointing": _TORCH,
    },
    "Tracing and exporting": {
        "torch.library.opcheck": _NOBODY_SAYS,
        "FakeTensor": _TORCH,
        "meta tensors": _TORCH,
        "fake npu device": _NOBODY_SAYS,
        "torch.compile(fullgraph=True)": _TORCH,
        "torch.compile: one graph for any N and C marked dynamic": _TORCH,
        "torch.compile: two graphs for any N unmarked": _TORCH,
        "torch.export, strict and not, with dynamic N and C": _TORCH,
        "exported program in a fresh process": _TORCH,
        "export for npu without an NPU": _NOBODY_SAYS,
        "AOTInductor package": _TORCH,
        "decompositions into torch's own operators": ("-", "yes: it is", "-", "-", "-"),
        "torch.jit.trace": _TORCH,
    },
    "In training code": {
        "CrossEntropyLoss module": ("no", "yes", "yes", "yes", "no"),
        "LinearCrossEntropyLoss module": ("no", "yes", "no", "yes", "yes"),
        "deepcopy and pickle of modules": _TORCH,
        "torch.compile of the modules": _TORCH,
        "autocast": ("-", "yes", "-", "-", "-"),
        "torch.amp.GradScaler": ("-", "yes", "-", "-", "-"),
        "Hugging Face Trainer": ("-", "its own loss", "-", "yes", "yes"),
        "Hugging Face model.loss_function": ("-", "its own loss", "-", "patches models", "patches models"),
        "per-token log-probabilities": ("-", "-", "-", "-", "yes"),
        "padded vocabulary": _NOBODY_SAYS,
        "torch.profiler": _TORCH,
        "torch.utils.flop_counter": _NOBODY_SAYS,
    },
    "Scripts that are there already": {
        "install and uninstall": ("no", "no", "no", "patches models", "patches models"),
        "training script without an edit": ("no", "no", "no", "for Hugging Face models", "for Hugging Face models"),
        "F.cross_entropy redirected": _REDIRECTION,
        "nn.CrossEntropyLoss redirected": _REDIRECTION,
        "autocast, F.cross_entropy redirected": _REDIRECTION,
        "torch.func, F.cross_entropy redirected": _REDIRECTION,
        "torch.compile, F.cross_entropy redirected": _REDIRECTION,
        "torch.compile with dynamic shapes, F.cross_entropy redirected": _REDIRECTION,
        "torch.export, F.cross_entropy redirected": _REDIRECTION,
        "torch.profiler, F.cross_entropy redirected": _REDIRECTION,
        "DTensor, F.cross_entropy redirected": _REDIRECTION,
        "torch_npu.npu_cross_entropy_loss redirected": _REDIRECTION,
        "torch.compile, torch_npu.npu_cross_entropy_loss redirected": _REDIRECTION,
        "autocast on npu, F.cross_entropy redirected": _REDIRECTION,
        "training script on npu without an edit": _REDIRECTION,
    },
    "Many devices": {
        "tensor-parallel vocabulary": (
            _NPU_FUSED_PARTS, "loss_parallel, with DTensor", "yes", "yes: reduction none", "from hidden states",
        ),
        "tensor-parallel vocabulary under torch.compile": ("-", "yes", "-", "-", "-"),
        "tensor-parallel vocabulary from hidden states": (_NPU_FUSED_PARTS, "no", "no", "yes, on CUDA", "yes"),
        "Megatron's smoothing over ranks": ("no", "no", "no", "yes", "no"),
        "what is wrong on one rank is an error on all": _NOBODY_SAYS,
        "dead or late rank, bounded wait": _NOBODY_SAYS,
        "torchrun with two ranks": ("-", "yes", "-", "-", "-"),
        "DTensor rows, right mean": ("average of averages", "average of averages", "no", "no", "no"),
        "DTensor vocabulary": ("no", "loss_parallel", "no", "no", "no"),
        "DTensor rows and vocabulary on a 2-D mesh": ("no", "no mean", "no", "no", "no"),
        "DTensor rows and vocabulary from hidden states": ("no", "no", "no", "no", "no"),
        "DTensor under torch.compile": ("-", "yes", "no", "no", "no"),
        "training, tensor parallel": ("no", "loss_parallel", "yes", "no", "yes"),
    },
}  # fmt: skip
