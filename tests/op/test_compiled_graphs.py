# SPDX-License-Identifier: Apache-2.0
"""The number of graphs that torch.compile makes of a loss, while the numbers of rows and classes change."""

from __future__ import annotations

import pytest
import torch
from loss_forms import FORMS, Form, assert_right
from saved_programs import on, outputs_and_gradient
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

# Two rows come first, or later. torch specialises graphs for the sizes 0 and 1.
ROWS = [(2, 6, 7, 50, 3), (6, 7, 9, 2, 50)]


def graphs_of(form: Form, calls: list[tuple[Tensor, ...]]) -> int:
    """The number of graphs that the calls took; checks the results of each call."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(form.module(), backend=counter, fullgraph=True)
    for inputs in calls:
        assert_right(outputs_and_gradient(compiled, inputs), form, inputs)
    return counter.frame_count


@pytest.mark.feature("torch.compile: one graph for any N and C marked dynamic")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("sizes", ["N", "NC"])
def test_one_graph_where_sizes_are_marked_dynamic(
    sizes: str, rows: tuple[int, ...], form: Form, device: torch.device
) -> None:
    calls = [on(device, form.inputs(n, 33 + n if "C" in sizes else 33)) for n in rows]
    for inputs in calls:
        for tensor, names in zip(inputs, form.sizes, strict=True):
            for dim, name in names.items():
                if name in sizes:
                    torch._dynamo.mark_dynamic(tensor, dim)
    assert graphs_of(form, calls) == 1


@pytest.mark.feature("torch.compile: two graphs for any N unmarked")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_two_graphs_where_nothing_is_marked(rows: tuple[int, ...], form: Form, device: torch.device) -> None:
    """One graph for the first number of rows, and one for all others."""
    assert graphs_of(form, [on(device, form.inputs(n, 33)) for n in rows]) == 2
