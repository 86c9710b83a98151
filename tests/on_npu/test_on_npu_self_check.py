# SPDX-License-Identifier: Apache-2.0
"""The self-check on an npu: which kernels it runs and names, and which state does not affect it."""

from __future__ import annotations

import json
import re
import types
from typing import Any

import pytest
import torch
import torch_npu  # noqa: F401
from launch_hook import run_hooked
from loss_on_npu import whole_device
from virtual_cann import observe
from virtual_process import run

from npu_ce_jit import cross_entropy
from npu_ce_jit.errors import SelfCheckError
from npu_ce_jit.jit.sources import Sources
from npu_ce_jit.op import self_check
from npu_ce_jit.op.autograd.functions import OPS

__all__ = ["whole_device"]  # a fixture

NPU = torch.device("npu", 0)
_KERNEL = re.compile(r"__global__ [\w ]*void (npu_ce_\w+)\(")


def all_kernels() -> list[str]:
    """The kernels that the sources define."""
    sources = sorted((Sources.installed().root_dir / "ascendc").glob("*ward/*.asc"))
    return [name for source in sources for name in _KERNEL.findall(source.read_text("utf-8"))]


def test_every_kernel_runs_in_the_case_that_says_so(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    cross_entropy(torch.zeros(4, 5).to(device), torch.zeros(4, dtype=torch.int64).to(device))
    most_blocks: dict[str, int] = {}
    for case, dtype in self_check.cases(device):
        monkeypatch.setattr(self_check, "cases", lambda _, one=(case, dtype): [one])
        observe.clear_reports()
        self_check.run(device)
        reports = observe.reports()
        assert {report["kernel"] for report in reports} == set(case.kernels(dtype))
        assert [report["violations"] for report in reports if report["violations"]] == []
        for report in reports:
            most_blocks[report["kernel"]] = max(report["blocks"], most_blocks.get(report["kernel"], 0))
    assert sorted(most_blocks) == sorted(all_kernels())
    assert [name for name, blocks in most_blocks.items() if blocks == 1] == ["npu_ce_reduce_last"]  # always one block


LAME = """
from npu_ce_jit.op import self_check
from npu_ce_jit.errors import SelfCheckError
device = torch.device("npu", 0)
npu_ce_jit.cross_entropy(torch.zeros(4, 5).to(device), torch.zeros(4, dtype=torch.int64).to(device))
cases = list(self_check.cases(device))
said = {}
for name in KERNELS:
    hook.hook_lame(name.encode())
    self_check.cases = lambda _: [(case, dtype) for case, dtype in cases if name in case.kernels(dtype)]
    try:
        self_check.run(device)
    except SelfCheckError as error:
        said[name] = error.fact
print(json.dumps(said))
"""


def test_a_kernel_whose_last_block_does_nothing_is_named() -> None:
    kernels = all_kernels()
    assert len(kernels) > 20
    said = json.loads(run_hooked(f"KERNELS = {kernels}" + LAME).stdout)
    first_named = {name: re.search(r", from (\w+)[ ,]", said.get(name, "")) for name in kernels}
    assert {name: found and found[1] for name, found in first_named.items()} == {name: name for name in kernels}, said


@pytest.mark.parametrize(
    ("raised", "is_verdict"),
    [
        ("The Inner error is reported: 507035, [Error]: The vector core execution is abnormal.", True),
        ("error code is 507034", True),
        ("npu_ce_jit::_forward: expected its kernels to be launched, got ACL error 107000: no such kernel", True),
        ("npu_ce_jit::_forward: expected its kernels to be launched, got nothing on its stream", True),
        ("npu_ce_jit::_forward: expected its kernels to be launched, got ACL error 207001: no memory", False),
        ("error code is 507010: device 0 is lost", False),
        ("error code is 507053: UCE error of the device's memory", False),
        ("stream is captured, error code is 107029", False),
    ],
)
def test_only_what_the_kernels_did_is_a_verdict(raised: str, is_verdict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any) -> Any:
        raise RuntimeError(raised)

    operators = {"_forward": types.SimpleNamespace(default=forward), "_backward": OPS._backward}
    monkeypatch.setattr(self_check, "OPS", types.SimpleNamespace(**operators))
    with pytest.raises(SelfCheckError if is_verdict else RuntimeError) as caught:
        self_check.run(NPU)
    assert isinstance(caught.value, SelfCheckError) is is_verdict
    assert raised in str(caught.value)


def test_a_kernel_that_a_core_cannot_run_is_a_verdict() -> None:
    self_check.run(NPU)
    observe.set_faults("launch=3")
    with pytest.raises(SelfCheckError, match=r"one of npu_ce_forward_narrow_float32, .* raised RuntimeError"):
        self_check.run(NPU)


def test_what_failed_before_the_check_is_none() -> None:
    x = torch.zeros(8).to(NPU)
    torch.npu.synchronize()
    observe.set_faults("slow=500ms,launch=1")
    cross_entropy(x.view(2, 4), torch.zeros(2, dtype=torch.int64).to(NPU))  # fails after the check has begun
    with pytest.raises(RuntimeError, match="507035") as caught:
        self_check.run(NPU)
    assert not isinstance(caught.value, SelfCheckError)


def test_memory_that_is_not_there_is_none() -> None:
    torch.npu.empty_cache()
    observe.set_faults("malloc=1")
    with pytest.raises(torch.OutOfMemoryError):
        self_check.run(NPU)


def test_inputs_that_arrive_as_something_else_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *how, **more: moved(x, *how, **more).clone().fill_(1))
    with pytest.raises(Exception, match="came back as something else") as caught:
        self_check.run(NPU)
    assert not isinstance(caught.value, SelfCheckError)


# The first call of a process; the check has not been passed before.
FIRST_CALL = """
import torch, torch_npu, npu_ce_jit
from npu_ce_jit import bootstrap, session
checks = []
check = session.Session._checked
session.Session._checked = lambda *arguments: (checks.append(1), check(*arguments))[1]
session.knows = lambda *_: False
session.reject = lambda *_: print("rejected")
device = torch.device("npu", 0)
x, target = torch.randn(4, 5, device="cpu"), torch.zeros(4, dtype=torch.int64, device="cpu")
right = torch.nn.functional.cross_entropy(x, target)
(gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(x.requires_grad_(), target), x)
there, target = x.detach().to(device), target.to(device)
generators = torch.get_rng_state(), torch.npu.get_rng_state()
"""
AFTER_IT = """
session = bootstrap.current()
assert len(checks) == 1, checks
assert session.npu.state == "loaded", session.npu.problem
assert torch.equal(torch.get_rng_state(), generators[0]) and torch.equal(torch.npu.get_rng_state(), generators[1])
print(torch.allclose(got.cpu().float(), right if got.dim() == 0 else gradient, atol=1e-5))
"""
CALL = "got = npu_ce_jit.cross_entropy(there, target)\n"
IN_CONTEXT = "with {}:\n    got = npu_ce_jit.cross_entropy(there, target)\n"
FIRST_CALLS = {
    "bfloat16": "torch.set_default_dtype(torch.bfloat16)\n" + CALL + "torch.set_default_dtype(torch.float32)\n",
    "device npu": "torch.set_default_device('npu')\n" + CALL,
    "device meta": "torch.set_default_device('meta')\n" + CALL + "torch.set_default_device('cpu')\n",
    "inference": IN_CONTEXT.format("torch.inference_mode()"),
    "autocast": IN_CONTEXT.format("torch.autocast('npu', torch.bfloat16), torch.autocast('cpu', torch.bfloat16)"),
    "deterministic": "torch.use_deterministic_algorithms(True)\n" + CALL,
    "transform": "got = torch.func.grad(lambda x: npu_ce_jit.cross_entropy(x, target))(there)\n",
    "fake tensors": """
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode(allow_non_fake_inputs=True) as mode:
    assert npu_ce_jit.cross_entropy(mode.from_tensor(there), mode.from_tensor(target)).shape == ()
"""
    + CALL,
}


@pytest.mark.parametrize("state", FIRST_CALLS)
def test_no_state_of_the_process_has_a_part_in_it(state: str) -> None:
    done = run(FIRST_CALL + FIRST_CALLS[state] + AFTER_IT)
    assert (done.returncode, done.stdout.split()) == (0, ["True"]), done.stderr
