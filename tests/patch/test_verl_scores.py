# SPDX-License-Identifier: Apache-2.0
"""verl's functions with the patch, against themselves without, in float64."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from probes import needs_frameworks
from ranks import run_on_ranks
from switch_tools import by_ours, runs_ours
from torch import Tensor

import npu_ce_jit
from npu_ce_jit.errors import PatchError

pytestmark = needs_frameworks("verl")

VOCAB, HIDDEN = 1003, 37
Call = Callable[..., Any]


def functions() -> ModuleType:
    import verl.utils.torch_functional as module

    return module


def gradients_of(result: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a weighted sum, in which each row has its own weight."""
    weights = torch.linspace(-1, 2, result.numel(), dtype=torch.float64).view(result.shape)
    return torch.autograd.grad(result, of, weights.to(result.dtype), retain_graph=True)


def require_near(found: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 3e-6, torch.bfloat16: 6e-3}[dtype]
    assert found.shape == truth.shape
    assert (found.double() - truth).norm() <= tolerance * truth.norm()


CALLS: dict[str, tuple[str, bool]] = {
    "logprobs_from_logits": ("logprobs_from_logits_naive", True),
    "logprobs_from_logits_v2": ("logprobs_from_logits_naive", True),
    "logprobs_from_logits_torch_npu": ("logprobs_from_logits_naive", True),
    "entropy_from_logits": ("entropy_from_logits", False),
    "entropy_from_logits_with_chunking": ("entropy_from_logits", False),
    "calculate_sum_pi_squared_from_logits": ("calculate_sum_pi_squared_from_logits", False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CALLS)
def test_functions_of_logits(name: str, dtype: torch.dtype) -> None:
    truth_name, takes_labels = CALLS[name]
    module = functions()
    truth_of: Call = getattr(module, truth_name)
    logits = (3 * torch.randn(5, 7, VOCAB)).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    labels = [torch.randint(VOCAB, (5, 7))] if takes_labels else []
    truth = truth_of(exact, *labels)
    (true_gradient,) = gradients_of(truth, exact)
    with npu_ce_jit.patch.verl():
        found = by_ours(lambda: getattr(module, name)(logits, *labels))
    assert found.dtype == torch.float32
    require_near(found, truth, torch.float32)
    require_near(gradients_of(found, logits)[0], true_gradient, dtype)


@pytest.mark.parametrize("inplace_backward", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_the_gradient_lies_over_the_logits_where_verl_asks_for_it(inplace_backward: bool, whole: bool) -> None:
    start = torch.randn(4, 6, VOCAB, requires_grad=True)
    logits = start * 1 if whole else (start * 1)[:, 1:]
    labels = torch.randint(VOCAB, logits.shape[:-1])
    before = logits.detach().clone()
    with npu_ce_jit.patch.verl():
        functions().logprobs_from_logits(logits, labels, inplace_backward).sum().backward()
    assert torch.equal(logits.detach(), before) == (not (inplace_backward and whole))
    assert start.grad is not None
    assert start.grad.norm() > 1


def test_a_model_trains_the_same() -> None:
    """20 steps of policy gradient with an entropy bonus."""
    module = functions()

    def losses() -> Tensor:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(VOCAB, HIDDEN), torch.nn.Linear(HIDDEN, VOCAB))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        tokens, advantages = torch.randint(VOCAB, (3, 11)), torch.randn(3, 10)
        history = []
        for _ in range(20):
            logits = model(tokens[:, :-1]) / 0.7
            logprobs = module.logprobs_from_logits(logits, tokens[:, 1:], inplace_backward=False)
            ratio = (logprobs - logprobs.detach()).exp()
            loss = -(advantages * ratio).mean() - 0.01 * module.entropy_from_logits(logits).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.detach() - (advantages * logprobs.detach()).mean())  # the ratio is always 1
        return torch.stack(history)

    theirs = losses()
    with npu_ce_jit.patch.verl():
        ours = by_ours(losses)
    assert theirs[0] - theirs[-1] > 0.1  # the model has learned
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


def test_what_torch_compile_makes_of_the_entropy() -> None:
    """As in verl's FSDP engine: one graph, which contains our operator."""
    logits = torch.randn(9, VOCAB, requires_grad=True)
    truth = functions().entropy_from_logits(logits.detach().double())
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Call:
        graphs.append(graph)
        return graph.forward

    with npu_ce_jit.patch.verl():
        found = torch.compile(functions().entropy_from_logits, dynamic=True, backend=backend)(logits)
        (graph,) = graphs
        parts = [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]  # of autograd.Functions
        assert any("npu_ce_jit" in str(node.target) for part in parts for node in part.graph.nodes)
        require_near(found, truth, torch.float32)
        found.sum().backward()
    assert logits.grad is not None


def importer(name: str, value: object) -> ModuleType:
    """A module that ran `from verl... import function`."""
    module = ModuleType(name)
    module.function = value  # type: ignore[attr-defined]
    sys.modules[name] = module
    return module


def test_modules_that_have_imported_a_function() -> None:
    module = functions()
    theirs = module.logprobs_from_logits
    logits, labels = torch.randn(3, VOCAB), torch.randint(VOCAB, (3,))

    def who(function: Call) -> bool:
        return runs_ours(lambda: function(logits, labels))[1]

    before = importer("imported_before", theirs)
    try:
        patch = npu_ce_jit.patch.verl()
        assert "imported_before.function in effect" in repr(patch)
        later = importer("imported_later", module.logprobs_from_logits)
        assert npu_ce_jit.patch.verl() is patch  # what was imported since then is ours already
        assert [who(m.function) for m in (before, later)] == [True, True]
        patch.undo()
        assert before.function is module.logprobs_from_logits is theirs
        assert not who(later.function)
        with npu_ce_jit.patch.verl():
            assert [who(m.function) for m in (before, later)] == [True, True]
        assert [who(m.function) for m in (before, later)] == [False, False]
    finally:
        del sys.modules["imported_before"], sys.modules["imported_later"]


def exact_scores(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = (hidden @ weight.t() / temperature).log_softmax(-1)
    return logp.gather(-1, labels[..., None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


def of_hidden_states(score: Call, hidden: Tensor, weight: Tensor, labels: Tensor) -> list[Tensor]:
    """Log-probabilities, entropy, and the gradients of a weighted sum of both."""
    logprobs, entropy = (one.view(labels.shape) for one in score(hidden, weight, labels, 1.3))
    return [logprobs, entropy, *gradients_of(logprobs + 0.5 * entropy, hidden, weight)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(13,), (3, 5)])
def test_scores_from_hidden_states_are_as_near_to_the_truth(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    import verl.utils.kernel.linear_cross_entropy as kernel
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    hidden = torch.randn(*shape, HIDDEN).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN).to(dtype).requires_grad_()
    labels = torch.randint(VOCAB, shape)
    truth = of_hidden_states(exact_scores, *(t.detach().double().requires_grad_() for t in (hidden, weight)), labels)
    theirs = of_hidden_states(FusedLinearForPPO(), hidden, weight, labels)
    with npu_ce_jit.patch.verl():
        scores: list[Call] = [FusedLinearForPPO(), FusedLinearForPPO(impl_backend="liger"), kernel.linear_cross_entropy]
        ours = [by_ours(lambda: of_hidden_states(score, hidden, weight, labels)) for score in scores]  # noqa: B023
    for found in ours:
        for one, their, true in zip(found, theirs, truth, strict=True):
            allowed = 1.1 * (their.double() - true).norm() + 3e-6 * true.norm()
            assert (one.double() - true).norm() <= allowed


def test_verls_kernel_makes_one_row_of_all_positions_and_reduces_log_probabilities() -> None:
    """As in verl/utils/kernel/kernels.py at verl-project/verl@1dda039b, efficient_entropy_triton_kernel_epilogue."""
    import verl.utils.kernel.linear_cross_entropy as kernel

    hidden, weight, labels = torch.randn(3, 5, HIDDEN), torch.randn(VOCAB, HIDDEN), torch.randint(VOCAB, (3, 5))
    logprobs, entropy = (one.flatten() for one in exact_scores(hidden.double(), weight.double(), labels, 1.0))
    with npu_ce_jit.patch.verl():
        for reduction, truth in {"none": logprobs, "sum": logprobs.sum(), "MEAN": logprobs.mean()}.items():
            found = kernel.linear_cross_entropy(hidden, weight, labels, 1.0, reduction)
            require_near(found[0], truth, torch.float32)
            require_near(found[1], entropy, torch.float32)
        with pytest.raises(ValueError, match="expected reduction 'none', 'sum' or 'mean', got 'max'"):
            kernel.linear_cross_entropy(hidden, weight, labels, 1.0, "max")


def _on_a_rank(rank: int) -> None:
    import megatron.core.parallel_state as mpu
    import torch.distributed as dist
    import verl.utils.kernel.linear_cross_entropy as kernel
    import verl.utils.megatron.tensor_parallel as sharded

    from npu_ce_jit.patch import verl

    mpu._TENSOR_MODEL_PARALLEL_GROUP = group = dist.group.WORLD
    theirs = sharded.vocab_parallel_log_probs_from_logits, functions().entropy_from_logits
    squared = functions().calculate_sum_pi_squared_from_logits
    share = 501
    own = slice(rank * share, (rank + 1) * share)
    logits = torch.randn(3, 5, 2 * share)
    labels = torch.randint(2 * share, (3, 5))
    local, exact = logits[..., own].clone().requires_grad_(), logits.double().requires_grad_()
    truths = {
        "vocab_parallel_log_probs_from_logits": theirs[0](logits[..., own].double(), labels),
        "vocab_parallel_entropy": theirs[1](exact),
        "vocab_parallel_entropy_with_chunking": theirs[1](exact),
        "vocab_parallel_sum_pi_squared": squared(exact),
    }
    with verl(megatron=True):
        for name, truth in truths.items():
            arguments = (labels,) if "log_probs" in name else ()
            found = by_ours(lambda: getattr(sharded, name)(local, *arguments))  # noqa: B023
            require_near(found, truth.double(), torch.float32)
            if not arguments:
                (true,) = gradients_of(truth, exact)
                require_near(gradients_of(found, local)[0], true[..., own], torch.float32)
        padded = labels.masked_fill(labels < 300, -1)  # Megatron's function masks targets out of range
        found = sharded.vocab_parallel_log_probs_from_logits(local, padded)
        assert found[padded < 0].count_nonzero() == 0
        require_near(found[padded >= 0], truths["vocab_parallel_log_probs_from_logits"][padded >= 0], torch.float32)

        hidden, weight = torch.randn(3, 5, HIDDEN), torch.randn(2 * share, HIDDEN)
        exact_parts = [t.double().requires_grad_() for t in (hidden, weight)]
        truth = exact_scores(*exact_parts, labels, 0.8)
        own_parts = [hidden.clone().requires_grad_(), weight[own].clone().requires_grad_()]
        flat = by_ours(lambda: kernel.linear_cross_entropy(*own_parts, labels, 0.8, "none", group))
        found = [one.view(3, 5) for one in flat]
        for one, true in zip(found, truth, strict=True):
            require_near(one, true, torch.float32)
        of_hidden, of_weight = gradients_of(found[0] + 0.5 * found[1], *own_parts)
        true_hidden, true_weight = gradients_of(truth[0] + 0.5 * truth[1], *exact_parts)
        require_near(of_weight, true_weight[own], torch.float32)
        # As in verl's tests/utils/test_special_linear_cross_entropy_tp.py, the ranks' gradients of hidden are summed.
        dist.all_reduce(of_hidden)
        require_near(of_hidden, true_hidden, torch.float32)


@needs_frameworks("megatron")
def test_scores_over_ranks() -> None:
    run_on_ranks(2, _on_a_rank)


def test_another_verl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def logprobs_from_logits(logits: Tensor, labels: Tensor, mask: Tensor) -> None: ...

    entropy = functions().entropy_from_logits
    monkeypatch.setattr(functions(), "logprobs_from_logits", logprobs_from_logits)
    with pytest.raises(PatchError, match=r"logits, labels, inplace_backward\), as verl .*\(logits, labels, mask\)"):
        npu_ce_jit.patch.verl()
    assert functions().entropy_from_logits is entropy
