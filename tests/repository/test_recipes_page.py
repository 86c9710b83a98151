# SPDX-License-Identifier: Apache-2.0
"""docs/recipes.md: every block runs, and has the numbers and gradients of its paper's formula over whole logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pages import code_of, needs_the_pages
from torch import Tensor, nn

PAIRS, LENGTH, FEATURES, VOCAB = 3, 7, 5, 23
COUNTED = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 0], [1] * 7], dtype=torch.bool)

pytestmark = needs_the_pages


class Response(nn.Module):
    """The hidden states and head of a tiny model, for a batch of responses."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.randn(PAIRS, LENGTH, FEATURES))
        self.head = nn.Linear(FEATURES, VOCAB)
        self.labels = torch.where(COUNTED, torch.randint(VOCAB, (PAIRS, LENGTH)), -100)

    def log_softmax(self, temperature: float = 1.0) -> Tensor:
        return (self.head(self.hidden) / temperature).log_softmax(-1)

    def logps(self, temperature: float = 1.0) -> Tensor:
        """Log-probabilities by the textbook formula: `[PAIRS, LENGTH]`, 0 for ignored tokens."""
        of_labels = self.log_softmax(temperature).gather(-1, self.labels.clamp(min=0)[..., None])[..., 0]
        return torch.where(COUNTED, of_labels, 0)


@pytest.fixture
def page() -> dict[str, Any]:
    """The names that the page defines."""
    names: dict[str, Any] = {}
    for block in code_of("recipes.md"):
        exec(block, names)
    return names


@pytest.fixture
def of_page(page: dict[str, Any]) -> Callable[..., Tensor]:
    return lambda of, temperature=1.0: page["token_logprobs"](of.hidden, of.head, of.labels, temperature)


def require_equal(ours: Tensor, textbook: Tensor, *trained: Response) -> None:
    torch.testing.assert_close(ours, textbook)
    leaves = [parameter for model in trained for parameter in model.parameters()]
    gradients = torch.autograd.grad(ours, leaves, retain_graph=True)
    assert all(gradient.any() for gradient in gradients)
    torch.testing.assert_close(gradients, torch.autograd.grad(textbook, leaves, retain_graph=True))


def models(count: int) -> list[Response]:
    return [Response().double() for _ in range(count)]


def test_temperature(of_page: Any) -> None:
    (policy,) = models(1)
    for temperature in (1.0, 0.6):
        values = of_page(policy, temperature)
        torch.testing.assert_close(values, policy.logps(temperature))
        require_equal((values**2).sum(), (policy.logps(temperature) ** 2).sum(), policy)


def test_dpo(page: Any, of_page: Any) -> None:
    chosen, rejected, *_ = all_of = models(4)
    ours = page["dpo"](*(of_page(part).sum(-1) for part in all_of), beta=0.3)
    pi_w, pi_l, ref_w, ref_l = (part.logps().sum(-1).exp() for part in all_of)
    textbook = -torch.sigmoid(0.3 * (pi_w / ref_w).log() - 0.3 * (pi_l / ref_l).log()).log().mean()
    require_equal(ours, textbook, chosen, rejected)


@pytest.mark.parametrize("sign", [1, -1])
def test_kto(sign: int, page: Any, of_page: Any) -> None:
    policy, reference, other, other_reference = models(4)
    desirable = torch.tensor([True, False, True])
    kl = sign * (of_page(other).sum(-1) - of_page(other_reference).sum(-1)).mean()
    ours = page["kto"](
        of_page(policy).sum(-1), of_page(reference).sum(-1), desirable, kl, beta=0.2, weight_good=1.5, weight_bad=0.5
    )
    z0 = max(0.0, sign * (other.logps().sum(-1) - other_reference.logps().sum(-1)).mean().item())
    values = []
    for row, is_good in enumerate(desirable):
        reward = policy.logps()[row].sum() - reference.logps()[row].sum()
        distance = reward - z0 if is_good else z0 - reward
        weight = 1.5 if is_good else 0.5
        values.append(weight - weight / (1 + (-0.2 * distance).exp()))
    require_equal(ours, sum(values) / 3, policy)


def test_orpo(page: Any, of_page: Any) -> None:
    chosen, rejected = models(2)
    ours = page["orpo"](*(page["mean_logprob"](of_page(part), part.labels) for part in (chosen, rejected)), weight=0.4)
    p_w, p_l = ((part.logps().sum(-1) / COUNTED.sum(-1)).exp() for part in (chosen, rejected))
    odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    textbook = (-p_w.log() - 0.4 * torch.sigmoid(odds_ratio.log()).log()).mean()
    require_equal(ours, textbook, chosen, rejected)


def test_grpo(page: Any, of_page: Any) -> None:
    policy, old, reference = models(3)
    advantages = torch.tensor([1.5, -0.5, 0.25], dtype=torch.float64)
    with torch.no_grad():  # the sampling policy is close to the current one
        old.load_state_dict(
            {name: value + 0.1 * torch.randn_like(value) for name, value in policy.state_dict().items()}
        )
        old.labels = reference.labels = policy.labels
    frozen = [of_page(part).detach() for part in (old, reference)]
    ours = page["grpo"](of_page(policy), *frozen, advantages, policy.labels, clip=0.2, beta=0.3)
    of_responses, clipped = [], 0
    for row in range(PAIRS):
        of_tokens = []
        for token in COUNTED[row].nonzero()[:, 0]:
            pi, pi_old, pi_ref = (part.logps()[row, token].exp() for part in (policy, old, reference))
            advantage, ratio = advantages[row], pi / pi_old.detach()
            gain = min(ratio * advantage, min(max(ratio, torch.tensor(0.8)), torch.tensor(1.2)) * advantage)
            clipped += bool(gain != ratio * advantage)
            of_tokens.append(gain - 0.3 * (pi_ref.detach() / pi - (pi_ref.detach() / pi).log() - 1))
        of_responses.append(sum(of_tokens) / len(of_tokens))
    assert 0 < clipped < COUNTED.sum()
    require_equal(ours, -sum(of_responses) / PAIRS, policy)


def test_dft(page: Any, of_page: Any) -> None:
    (policy,) = models(1)
    ours = page["dft"](of_page(policy), policy.labels)
    logps = policy.logps()[COUNTED]
    require_equal(ours, -(logps.exp().detach() * logps).mean(), policy)


def test_topk_distillation(page: Any) -> None:
    student, teacher = models(2)
    sent = page["topk_of"](teacher.hidden, teacher.head, k=4)
    ours = page["topk_kl"](student.hidden, student.head, student.labels, *sent)
    log_t, classes = teacher.log_softmax().detach().topk(4)
    log_s = student.log_softmax().gather(-1, classes)
    textbook = (log_t.exp() * (log_t - log_s)).sum(-1)[COUNTED].mean()
    require_equal(ours, textbook, student)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_divergences(beta: float, page: Any) -> None:
    student, teacher = models(2)
    ours = page["jsd"](
        student.hidden, student.head, teacher.hidden, teacher.head, student.labels, beta=beta, temperature=0.7
    )
    s, t = student.log_softmax(0.7).exp()[COUNTED], teacher.log_softmax(0.7).exp().detach()[COUNTED]
    m = beta * t + (1 - beta) * s

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p / q).log()).sum(-1).mean()

    textbook = {0.0: kl(t, s), 1.0: kl(s, t)}.get(beta, beta * kl(t, m) + (1 - beta) * kl(s, m))
    require_equal(ours, textbook, student)
