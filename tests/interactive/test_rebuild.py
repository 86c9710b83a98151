# SPDX-License-Identifier: Apache-2.0
"""Kernels that are replaced in the running process. SCALE is a factor of the loss, which tells them apart."""

from __future__ import annotations

import ctypes
import os
import runpy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from edited_sources import RIGHT, TARGET, X, doubling, scale
from locations import CHECKOUT
from probes import needs_the_library
from torch._subclasses.fake_tensor import FakeTensorMode
from toy_package import EXPORT, toy, wait_until, write_sources

import npu_ce_jit
from npu_ce_jit import bootstrap, cross_entropy
from npu_ce_jit.errors import BuildError, LoadError, SelfCheckError, ToolchainError
from npu_ce_jit.jit.build import compile as build_module
from npu_ce_jit.jit.cache.key import cache_key
from npu_ce_jit.jit.cache.store import Store
from npu_ce_jit.jit.targets import cpu_target
from npu_ce_jit.op import registration, self_check

pytestmark = needs_the_library

CPU = torch.device("cpu")
EXAMPLE = CHECKOUT / "examples/experiment.py"


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    return doubling(tmp_path_factory.mktemp("edited"), "cpu")


@pytest.fixture(autouse=True)
def _installed_kernels() -> Iterator[None]:
    yield
    npu_ce_jit.rebuild(device="cpu")
    assert scale("cpu") == 1


def gradient() -> torch.Tensor:
    leaf = X.clone().requires_grad_()
    cross_entropy(leaf, TARGET).backward()
    assert leaf.grad is not None
    return leaf.grad


def test_the_next_call_runs_the_new_kernels_and_everything_made_before_goes_on(doubled):
    compiled = torch.compile(cross_entropy, backend="aot_eager", fullgraph=True)
    mapped = torch.func.vmap(cross_entropy)
    before = gradient()
    assert torch.allclose(compiled(X, TARGET), RIGHT)
    first = bootstrap.current().cpu.artifact

    result = doubled(check=False)
    assert scale("cpu") == 2
    assert torch.allclose(compiled(X, TARGET), 2 * RIGHT)
    assert torch.allclose(mapped(X[None], TARGET[None]), 2 * RIGHT)
    assert torch.equal(gradient(), before), "the backward pass was not edited"
    with FakeTensorMode() as fake:
        assert cross_entropy(fake.from_tensor(X), fake.from_tensor(TARGET)).shape == ()
    info = npu_ce_jit.info()["cpu"]
    assert {name: result["cpu"][name] for name in info} == info
    assert info["library"] != str(first.library)
    assert info["rebuilt_from"].endswith(" -DSCALE=2")
    assert result["defines"] == ["SCALE=2"]
    assert "-DSCALE=2" in (Path(info["library"]).parent / "build.ninja").read_text("utf-8")
    assert "define: SCALE=2" in (bootstrap.current().cpu.artifact.manifest["key"])
    assert result["cpu"]["library"] in repr(result)

    back = npu_ce_jit.rebuild(device="cpu")
    assert scale("cpu") == 1
    assert torch.allclose(compiled(X, TARGET), RIGHT)
    assert (back["cpu"]["built"], back["cpu"]["library"]) == (False, str(first.library))
    again = doubled(check=False)
    assert (again["cpu"]["built"], again["cpu"]["library"]) == (False, result["cpu"]["library"])
    assert scale("cpu") == 2


def test_a_macro_of_the_installed_sources():
    x = torch.randn(3, 10_000)
    target = torch.tensor([1, 2, 3])
    before = cross_entropy(x, target, label_smoothing=0.1)
    npu_ce_jit.rebuild({"NPU_CE_BLOCK_ELEMS": 64}, device="cpu")
    after = cross_entropy(x, target, label_smoothing=0.1)
    assert torch.allclose(before, after)
    assert "-DNPU_CE_BLOCK_ELEMS=64" in npu_ce_jit.info()["cpu"]["rebuilt_from"]


@pytest.mark.skipif(not EXAMPLE.is_file(), reason="the package under test is installed, not a checkout")
def test_the_example_computes_what_it_says(capsys):
    torch.manual_seed(3)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    installed, *_, edited, installed_again = capsys.readouterr().out.splitlines()
    torch.manual_seed(3)
    x, target = torch.randn(4, 8), torch.tensor([1, 2, 3, 4])
    log_prob = x.log_softmax(1)
    of_target = log_prob.gather(1, target[:, None]).squeeze(1)
    right = (-0.9 * of_target - 0.1 / 7 * (log_prob.sum(1) - of_target)).mean()
    assert float(edited.removeprefix("edited ")) == pytest.approx(right.item(), abs=1e-6)
    right = F.cross_entropy(x, target, label_smoothing=0.1)
    assert float(installed.removeprefix("installed ")) == pytest.approx(right.item(), abs=1e-6)
    assert installed_again == installed


@pytest.mark.exhaustive
def test_calls_in_other_threads_run_on_one_set_of_kernels_or_the_other(doubled, capfd, recwarn):
    doubled(check=False)
    capfd.readouterr()  # discards the build's messages
    right_gradient, stop = gradient(), threading.Event()
    seen: list[float] = []
    faults: list[object] = []

    def calls() -> None:
        try:
            while not stop.is_set():
                leaf = X.clone().requires_grad_()
                loss = cross_entropy(leaf, TARGET)
                loss.backward()
                seen.append(round((loss / RIGHT).item(), 4))
                if not torch.equal(leaf.grad, right_gradient):
                    faults.append(leaf.grad)
        except Exception as error:  # noqa: BLE001
            faults.append(error)

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        npu_ce_jit.rebuild(device="cpu")
        assert scale("cpu") == 1
        wait_until(lambda: 1.0 in seen or faults)
        doubled(check=False)
        assert scale("cpu") == 2
        wait_until(lambda: 2.0 in seen or faults)
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert set(seen) == {1.0, 2.0}
    assert list(recwarn) == []
    assert capfd.readouterr().err == "", "torch has nothing to say of kernels that are exchanged"


def test_wrong_kernels_are_refused_and_no_other_thread_ever_runs_them(doubled, monkeypatch):
    scales: dict[str, float] = {}

    def check_and_look(device: torch.device) -> None:
        other = threading.Thread(target=lambda: scales.update(other=scale("cpu")))
        other.start()
        other.join()
        scales["this"] = scale("cpu")
        run(device)

    run = self_check.run
    monkeypatch.setattr(self_check, "run", check_and_look)
    with pytest.raises(SelfCheckError, match=r"The CPU kernels fail .* expected loss\[0\] = .*check=False"):
        doubled()
    assert scales == {"this": 2, "other": 1}
    assert scale("cpu") == 1
    assert "fail their self-check" in npu_ce_jit.info()["cpu"]["problem"]
    assert npu_ce_jit.info()["cpu"]["state"] == "loaded"
    monkeypatch.undo()
    npu_ce_jit.rebuild(device="cpu")
    assert npu_ce_jit.info()["cpu"]["problem"] is None


def test_wrong_kernels_before_the_first_call_do_not_keep_the_installed_ones_from_it(doubled):
    bootstrap.change(lambda session: session._replace(cpu=bootstrap.Kernels("lazy")))
    registration.cover(CPU)
    with pytest.raises(SelfCheckError, match="expected loss"):
        doubled()
    assert bootstrap.current().backend == "lazy"
    assert scale("cpu") == 1
    assert bootstrap.current().backend == "cpp"
    assert bootstrap.current().cpu.problem is None


def test_where_the_reference_computes_good_kernels_take_over_and_wrong_ones_do_not(doubled):
    bootstrap.change(lambda session: session._replace(cpu=bootstrap.Kernels()))
    registration.cover(CPU)
    for _ in range(2):
        with pytest.raises(SelfCheckError, match="expected loss"):
            doubled()
        assert scale("cpu") == 1
        assert bootstrap.current().backend == "reference"
    npu_ce_jit.rebuild(device="cpu")
    assert bootstrap.current().backend == "cpp"
    doubled(check=False)
    assert scale("cpu") == 2, "the library's kernels are covered by nothing"


def staging_dirs() -> list[Path]:
    roots = Store.of(bootstrap.current().settings).build_roots
    return [path for root in roots for path in root.layout_dir.glob("*/.b-*") if f"-{os.getpid()}-" in path.name]


def test_a_source_that_does_not_compile_leaves_everything_as_it_was_but_the_log(tmp_path):
    before = bootstrap.current().cpu
    with pytest.raises(BuildError, match=r"toy\.cpp:2") as caught:
        npu_ce_jit.rebuild(sources=write_sources(tmp_path, "int fine;\nint broken(\n"), device="cpu")
    assert "build again" in str(caught.value)
    assert bootstrap.current().cpu._replace(problem=None) == before._replace(problem=None)
    assert scale("cpu") == 1
    assert "toy.cpp:2" in npu_ce_jit.build_log()
    assert "toy.cpp:2" in npu_ce_jit.info()["cpu"]["problem"]
    assert staging_dirs() == []
    npu_ce_jit.rebuild(device="cpu")
    assert "libnpu_ce_jit_cpu.so" in npu_ce_jit.build_log()


def test_a_library_that_is_none_of_ours_is_refused(tmp_path):
    sources = write_sources(tmp_path, f"{EXPORT} int toy() {{ return 1; }}\n")
    with pytest.raises(LoadError, match="undefined symbol: npu_ce_jit_register"):
        npu_ce_jit.rebuild(sources=sources, device="cpu")
    assert scale("cpu") == 1


def test_a_build_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*arguments: Any) -> None:
        assert staging_dirs() != []
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module.BuildProgress, "show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        npu_ce_jit.rebuild(sources=write_sources(tmp_path, "#include <regex>\n"), device="cpu")
    assert staging_dirs() == []
    assert scale("cpu") == 1


def test_a_check_that_is_interrupted_leaves_the_old_kernels(doubled, monkeypatch):
    def interrupt(device: torch.device) -> None:
        assert scale("cpu") == 2
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(self_check, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            doubled()
    assert scale("cpu") == 1


@pytest.mark.parametrize(
    ("defines", "said"),
    [
        ({"1A": 1}, "name of a macro.*'1A'"),
        ({"A-B": 1}, "name of a macro.*'A-B'"),
        ({"A(x)": "x"}, "name of a macro"),
        ({"": 1}, "name of a macro"),
        ({"A\n": 1}, "name of a macro"),
        ({"A": ""}, "one word"),
        ({"A": "1 -shared"}, "one word"),
        ({"A": "1\n"}, "one word"),
        ({"A": "$(touch x)"}, "one word.*header"),
        ({"A": "`id`"}, "one word"),
        ({"A": "1;id"}, "one word"),
        ({"A": "'"}, "one word"),
        ({"A": 1.5}, "A to be a str, an int or None, got 1.5"),
    ],
)
def test_what_is_no_macro_or_more_than_one_word_is_refused(defines, said):
    with pytest.raises((ValueError, TypeError), match=said):
        npu_ce_jit.rebuild(defines, device="cpu")


def test_the_compiler_gets_a_value_as_it_stands(tmp_path):
    value = "a@b%c+d=e:f,g./h-0_"
    text = (
        f"#define TEXT(...) #__VA_ARGS__\n#define OF(x) TEXT(x)\n{EXPORT} const char* toy() {{ return OF(VALUE); }}\n"
    )
    one = toy(tmp_path, text + "#if ONE != 1 || YES != 1 || BARE != 1\n#error\n#endif\n")
    sources = one.target.sources.with_defines({"VALUE": value, "ONE": 1, "YES": True, "BARE": None})
    target = cpu_target(one.settings, one.toolchain, sources)
    library = ctypes.CDLL(str(one._replace(target=target, key=cache_key(target)).build().library))
    library.toy.restype = ctypes.c_char_p
    assert library.toy() == value.encode()


def test_what_there_is_nothing_to_rebuild_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'cpu', 'npu' or None, got 'gpu'"):
        npu_ce_jit.rebuild(device="gpu")
    with pytest.raises(ValueError, match=r"a directory with csrc/ and ascendc/, got .* without csrc/"):
        npu_ce_jit.rebuild(sources=tmp_path)
    with pytest.raises(BuildError, match=r"expected ascendc/ and csrc/npu/\.\nCopy both"):
        npu_ce_jit.rebuild(sources=write_sources(tmp_path), device="npu")
    with pytest.raises(ToolchainError, match="No torch_npu"):
        npu_ce_jit.rebuild(device="npu")
