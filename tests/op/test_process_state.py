# SPDX-License-Identifier: Apache-2.0
"""A process's settings (default dtype, default device, autocast and others) do not affect our numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Options
from probes import needs_the_library
from ranks import run_on_ranks
from torch import Tensor

import npu_ce_jit
from npu_ce_jit import bootstrap
from npu_ce_jit.bench import cases
from npu_ce_jit.bench.implementations import IMPLEMENTATIONS
from npu_ce_jit.cli import demo, doctor
from npu_ce_jit.op import reference
from npu_ce_jit.op.linear import chunks
from npu_ce_jit.op.schema import ARGMAX, ENTROPY, LOG_PROB, LSE, MEAN, Z_LOSS, accumulation_dtype

ROWS, CLASSES, FEATURES = 70, 13, 6
MAPS = Path("/proc/self/maps")
CPU = torch.device("cpu")
ALL = Options(label_smoothing=0.2, z_loss=0.1, softcap=5.0, logit_scale=1.3)
OPTIONS = (Options(), ALL, ALL._replace(reduction="none"), Options(reduction="sum", z_loss=0.01))


@contextmanager
def everything_set(autocast: bool = False) -> Iterator[None]:
    """All settings at once: if one of them breaks a result, the test fails."""
    before = torch.get_rng_state()
    with ExitStack() as undo:
        undo.callback(torch.set_default_dtype, torch.get_default_dtype())
        undo.callback(torch.set_default_device, None)
        undo.callback(torch.use_deterministic_algorithms, False)
        torch.set_default_dtype(torch.bfloat16)
        torch.set_default_device("meta")
        torch.use_deterministic_algorithms(True)
        if autocast:
            undo.enter_context(torch.autocast("cpu", torch.bfloat16))
        yield
    assert torch.equal(torch.get_rng_state(), before), "the global generator stays where it was"


def tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(3)
    target = torch.randint(CLASSES, (ROWS,))
    target[:5] = -100
    shapes = {"logits": (ROWS, CLASSES), "hidden": (ROWS, FEATURES), "head": (CLASSES, FEATURES), "bias": (CLASSES,)}
    return {
        **{name: torch.randn(shape, dtype=torch.float64).to(dtype) for name, shape in shapes.items()},
        "target": target,
        "weight": torch.rand(CLASSES) + 0.1,
    }


def with_gradients(outputs: Any, leaves: list[Tensor]) -> list[Tensor]:
    """The outputs; their gradients, without and with create_graph; and the gradients' gradients."""
    outputs = [o for o in ((outputs,) if isinstance(outputs, Tensor) else outputs) if o is not None]
    total = sum((o.double() ** 2).sum() for o in outputs if o.requires_grad)
    plain = torch.autograd.grad(total, leaves, retain_graph=True)
    recorded = torch.autograd.grad(total, leaves, create_graph=True)
    second = torch.autograd.grad(sum((g.double() ** 2).sum() for g in recorded), leaves)
    return [t.detach() for t in (*outputs, *plain, *recorded, *second)]


def public_forms(of: dict[str, Tensor]) -> Iterator[list[Tensor]]:
    batches = of["logits"].view(7, 10, CLASSES), of["target"].view(7, 10)
    for options in OPTIONS:
        weights = {"weight": of["weight"], **options.as_dict()}
        leaf = of["logits"].clone().requires_grad_()
        asked = {"return_z_loss": True, "return_lse": True, "return_argmax": True, "return_entropy": True}
        yield with_gradients(npu_ce_jit.cross_entropy(leaf, of["target"], **weights, **asked), [leaf])
        flat = npu_ce_jit.cross_entropy(leaf.view(7, 10, CLASSES).mT, of["target"].view(7, 10), **weights)
        yield with_gradients(flat, [leaf])
        terms = (options.reduction, options.ignore_index, options.label_smoothing, options.z_loss, True)
        dropped_in = npu_ce_jit.npu_cross_entropy_loss(leaf, of["target"], of["weight"], *terms)
        yield with_gradients(dropped_in, [leaf])
        loss, log_prob, _, lse = (t.detach() for t in dropped_in)
        lse = lse if options.z_loss else None
        operands = (torch.ones_like(loss), log_prob, of["target"], of["weight"], None, lse)
        yield [npu_ce_jit.npu_cross_entropy_loss_backward(*operands, *terms[:-1])]
        layer = [of[name].clone().requires_grad_() for name in ("hidden", "head", "bias")]
        linear = npu_ce_jit.linear_cross_entropy(*layer[:2], of["target"], linear_bias=layer[2], **weights)
        yield with_gradients(linear, layer)
        few = partial(npu_ce_jit.cross_entropy, target=of["target"][:9], **weights)
        slope = torch.func.grad(lambda x, few=few: few(x).sum())
        yield list(torch.func.jvp(slope, (of["logits"][:9],), (of["logits"][9:18],)))
        yield list(torch.func.vmap(torch.func.grad_and_value(npu_ce_jit.cross_entropy))(*batches))
        yield [npu_ce_jit.causal_lm_loss(of["logits"], of["target"], num_items_in_batch=5, label_smoothing=0.1)]
        probabilities = of["logits"].softmax(1)
        yield [npu_ce_jit.linear_cross_entropy(of["hidden"], of["head"], probabilities)]


def reference_forms(of: dict[str, Tensor]) -> Iterator[list[Tensor]]:
    """The reference, which runs where there is no compiler."""
    accumulated = accumulation_dtype(of["logits"].dtype)
    weight = of["weight"].to(accumulated)
    terms = (MEAN, -100, 0.1, 1e-3, 5.0, 0.7)
    asked = Z_LOSS | LOG_PROB | LSE | ARGMAX | ENTROPY
    outputs = reference.forward(of["logits"], of["target"], weight, *terms, asked, accumulated)
    *_, entropy, row_stats, denominators = outputs
    gradients = (outputs[0], None, None, outputs[3], entropy)
    backward = (*gradients, of["logits"], of["target"], weight, row_stats, entropy, denominators, *terms)
    yield [*outputs, reference.backward(*backward)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_FEWEST", CLASSES)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("forms", [public_forms, reference_forms])
def test_every_form_and_its_gradients(forms: Callable[..., Iterator[list[Tensor]]], dtype: torch.dtype) -> None:
    of = tensors(dtype)
    plain = list(forms(of))
    with everything_set():
        among_settings = list(forms(of))
    torch.testing.assert_close(among_settings, plain, rtol=0, atol=0, equal_nan=True)
    # Autocast leaves float64 unchanged, and does not affect the reference's operators.
    if dtype is torch.float64 or forms is reference_forms:
        with everything_set(autocast=True):
            autocast = list(forms(of))
        torch.testing.assert_close(autocast, plain, rtol=0, atol=0, equal_nan=True)


def check_ranks(rank: int) -> None:
    from npu_ce_jit import parallel

    of = tensors(torch.float32)
    own = slice(0, 5) if rank == 0 else slice(5, CLASSES)

    def losses() -> list[Tensor]:
        found = []
        for options in OPTIONS:
            more = {"weight": of["weight"][own], **options.as_dict()}
            leaf = of["logits"][:, own].clone().requires_grad_()
            layer = [of[n].clone().requires_grad_() for n in ("hidden",)] + [of["head"][own].clone().requires_grad_()]
            for loss, leaves in (
                (parallel.vocab_parallel_cross_entropy(leaf, of["target"], **more), [leaf]),
                (parallel.vocab_parallel_linear_cross_entropy(*layer, of["target"], **more), layer),
            ):
                found += [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]
        return found

    plain = losses()
    with everything_set():
        among_modes = losses()
    torch.testing.assert_close(among_modes, plain, rtol=0, atol=0)


@needs_the_library
@pytest.mark.skipif(not MAPS.exists(), reason=f"asks {MAPS} which libraries are open")
def test_threads_are_those_that_torch_was_told_of():
    """If the library loaded an OpenMP runtime of its own, that would choose its own number of threads."""
    npu_ce_jit.cross_entropy(torch.randn(ROWS, CLASSES), torch.zeros(ROWS, dtype=torch.int64))
    assert len(set(re.findall(r"/\S*lib[gi]?omp\S*", MAPS.read_text("utf-8")))) == 1


def test_where_ranks_share_the_classes():
    run_on_ranks(2, check_ranks)


def test_rebuild_demo_bench_and_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = [case._replace(rows=64, classes=101) for case in demo.CASES]
    monkeypatch.setattr(demo, "CASES", small)
    effort = cases.Effort(1, 0.1, compile=False)
    shown = [
        cases.Cell("cross_entropy", cases.STEP, "float32", 5, 11),
        cases.Cell("linear", cases.STEP, "bfloat16", 5, 11, 3),
    ]

    def values() -> list[float]:
        return [
            row["value"]
            for cell in shown
            for row in cases.measure(cell, [one for one in IMPLEMENTATIONS[cell.loss] if one.ours], CPU, effort)
            if "value" in row
        ]

    plain = values()
    assert len(plain) > len(shown)
    with everything_set(autocast=True):
        with torch.inference_mode():
            assert values() == plain
            assert demo.run_demo(["--rounds", "1"]) == 0
        assert npu_ce_jit.rebuild(device="cpu")["cpu"]["state"] == "loaded"
        assert doctor.examine(bootstrap.run())
        assert torch.get_default_dtype() is torch.bfloat16
        assert torch.get_default_device().type == "meta"
        assert torch.are_deterministic_algorithms_enabled()
    assert "agrees" in capsys.readouterr().out
