# SPDX-License-Identifier: Apache-2.0
"""What the JIT costs: a cold build against torch's own extension loader, and a warm import over `import torch`.

    python benchmarks/jit.py [--json] [--rounds N]

A cold build is timed from the call to the loaded library, in a fresh process with torch imported and an empty cache;
both builders may use the same number of jobs. Cold builds take long, so ours runs once before and once after torch's,
and the mean counts. The compilers' processor time tells how much of that was waiting on a busy machine.

A warm import is the median, over interleaved fresh processes, of the time that `import npu_ce_jit` takes after
`import torch`; both keep their byte code, as an installed package does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_ONE_FUNCTION = """
#include <torch/extension.h>
torch::Tensor twice(torch::Tensor x) { return x + x; }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("twice", &twice); }
"""

_OUR_BUILD = """
import resource, time, torch
start = time.perf_counter()
import npu_ce_jit
from npu_ce_jit import bootstrap
assert bootstrap.current().backend == "cpp", bootstrap.current().cpu.problem
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime)
"""

_TORCH_BUILD = """
import resource, sys, time, torch
start = time.perf_counter()
from torch.utils.cpp_extension import load
assert load("one_function", [sys.argv[1]]).twice(torch.ones(1)).item() == 2
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime)
"""

_WARM_IMPORT = """
import sys, time, torch
started = []
starts = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec"}
sys.addaudithook(lambda event, _: started.append(event) if event in starts else None)
start = time.perf_counter()
import npu_ce_jit
seconds = time.perf_counter() - start
from npu_ce_jit import bootstrap
assert bootstrap.current().backend == "cpp", bootstrap.current().cpu.problem
print(seconds, len(started), sum(bootstrap.current().seconds.values()))
"""

_TORCH_IMPORT = """
import time
start = time.perf_counter()
import torch
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=9, help="fresh processes per warm measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = [*_cold(Path(directory)), *_warm(Path(directory), arguments.rounds)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        bar = f"bar {row['bar']}  {'met' if row['met'] else 'MISSED'}" if "bar" in row else ""
        print(f"{row['what']:62} {row['value']:>9.3f} {row['unit']:3} {bar}")


def _cold(directory: Path) -> list[dict[str, object]]:
    source = directory / "one_function.cpp"
    source.write_text(_ONE_FUNCTION, "utf-8")
    before = _run(_OUR_BUILD, directory, "cold1")
    torchs, torchs_cpu = _run(_TORCH_BUILD, directory, "torch", str(source))
    after = _run(_OUR_BUILD, directory, "cold2")
    ours, cpu = (list(column) for column in zip(before, after, strict=True))
    mean = statistics.mean(ours)
    return [
        {"what": "cold build of the CPU library, import included", "value": mean, "unit": "s", "runs": ours},
        {"what": "torch.utils.cpp_extension.load, one function", "value": torchs, "unit": "s"},
        _judged("cold build over torch's", mean / torchs, "", 0.2),
        {"what": "processor time of the compilers, ours", "value": statistics.mean(cpu), "unit": "s", "runs": cpu},
        {"what": "processor time of the compilers, torch's", "value": torchs_cpu, "unit": "s"},
    ]


def _warm(directory: Path, rounds: int) -> list[dict[str, object]]:
    _run(_WARM_IMPORT, directory, "cold1")  # writes the byte code
    torchs, ours = [], []
    for _ in range(rounds):
        torchs.append(_run(_TORCH_IMPORT, directory, "cold1")[0])
        ours.append(_run(_WARM_IMPORT, directory, "cold1"))
    seconds, started, jit = (list(column) for column in zip(*ours, strict=True))
    return [
        {"what": "import torch", "value": statistics.median(torchs), "unit": "s", "runs": torchs},
        {"what": "of a warm import: discovery, cache, loading", "value": statistics.median(jit) * 1e3, "unit": "ms"},
        _judged("warm import npu_ce_jit over import torch", statistics.median(seconds) * 1e3, "ms", 20.0)
        | {"runs": [one * 1e3 for one in seconds]},
        _judged("processes started by a warm import", max(started), "", 0.0),
    ]


def _judged(what: str, value: float, unit: str, bar: float) -> dict[str, object]:
    return {"what": what, "value": value, "unit": unit, "bar": f"<= {bar:g}", "met": value <= bar}


def _run(code: str, directory: Path, cache: str, *arguments: str) -> list[float]:
    """The numbers that `code` prints, run in a fresh process whose caches are below `directory`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NPU_CE_JIT_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= {
        "NPU_CE_JIT_CACHE_DIR": str(directory / cache),
        "TORCH_EXTENSIONS_DIR": str(directory / cache),
        "PYTHONPYCACHEPREFIX": str(directory / "bytecode"),  # torch's is written there by the first run as well
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


if __name__ == "__main__":
    main()
