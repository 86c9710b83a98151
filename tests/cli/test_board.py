# SPDX-License-Identifier: Apache-2.0
"""The questions to a board, with stand-ins that answer: what is asked, compared, and written down."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from locations import CHECKOUT, VIRTUAL_CANN
from torch import Tensor

from npu_ce_jit.board import answers, arithmetic, assumed, expressions, memory, run
from npu_ce_jit.board.expressions import Expression
from npu_ce_jit.board.probes import LANES, LEFT_ALONE, PADDING_VALUE, NoAnswerError
from npu_ce_jit.board.questions import Board, Question, questions
from npu_ce_jit.cli.main import main
from npu_ce_jit.errors import BuildError
from npu_ce_jit.jit.sources import Sources

CPU = torch.device("cpu")


class Chip:
    """In place of the kernels: computes with torch; subclasses change the results."""

    def vector(self, operation: str, a: Tensor, b: Tensor) -> Tensor:
        elementwise = {"Exp": a.exp(), "Ln": a.log(), "Div": a / b, "Max": a.fmax(b)}
        if operation in elementwise:
            return elementwise[operation]
        assert operation == "WholeReduceSum"
        result = torch.full((LANES,), float(LEFT_ALONE))
        result[: LANES // 64] = a.view(-1, 64).sum(1)
        return result

    def cast(self, operation: str, values: Tensor, dtype: torch.dtype) -> Tensor:
        assert operation == "FloatToHalf"
        return values.to(dtype)

    def padded(self, dtype: torch.dtype, count: int, *, is_pad: bool, left: int, right: int) -> Tensor:
        came = torch.full((64 // dtype.itemsize,), LEFT_ALONE, dtype=dtype)
        came[: 32 // dtype.itemsize] = PADDING_VALUE if is_pad else 1
        assert left + count + right <= 32 // dtype.itemsize
        came[left : left + count] = torch.arange(1, count + 1, dtype=dtype)
        return came


class Flushing(Chip):
    def vector(self, operation: str, a: Tensor, b: Tensor) -> Tensor:
        result = super().vector(operation, a, b)
        return torch.where(result.abs() < 2.0**-126, 0.0, result)


class Torn(Chip):
    def vector(self, operation: str, a: Tensor, b: Tensor) -> Tensor:
        result = super().vector(operation, a, b)
        result[LANES // 2 :] += 1
        return result


def board(chip: Any) -> Board:
    return Board(CPU, 48, chip)


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("Exp(-inf)", Expression("Exp", [-torch.inf], 0)),
        ("Max(0x1p-140, 1)", Expression("Max", [2.0**-140, 1], 0)),
        ("WholeReduceSum(5, 1 x3, -5, 1)[4]", Expression("WholeReduceSum", [5, 1, 1, 1, -5, 1], 4)),
    ],
)
def test_expressions_are_read(text: str, expression: Expression) -> None:
    assert expressions.parse(text) == expression


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.0, "1"), (-0.0, "-0"), (torch.nan, "nan"), (-torch.inf, "-inf"), (2.0**-149, "0x1p-149"),
     (1.5 * 2.0**-130, "0x1.8p-130"), (16777216.0, "16777216"), (9223372036854775807, "9223372036854775807"),
     (0.1, "0.1"), (float(LEFT_ALONE), "left alone")],
)  # fmt: skip
def test_numbers_are_shown_with_all_their_digits(number: float, text: str) -> None:
    assert expressions.shown(number) == text


def test_the_chip_is_asked_what_is_written() -> None:
    texts = ["Exp(-inf)", "Max(nan, 1)", "FloatToHalf(65520)", "WholeReduceSum(1)", "WholeReduceSum(1, 2)[3]",
             "WholeReduceSum(1)[4]"]  # fmt: skip
    assert list(expressions.answers(Chip(), texts).values()) == ["0", "1", "inf", "64", "128", "left alone"]


def test_lanes_that_differ_are_no_answer() -> None:
    with pytest.raises(NoAnswerError, match="give 1 in lane 0 and another result"):
        expressions.answers(Torn(), ["Exp(0)"])


def test_every_operation_that_is_asked_for_is_in_a_kernel() -> None:
    text = "".join(file.read_text("utf-8") for file in (Sources.installed().root_dir / "ascendc/board").glob("*.asc"))
    there = set(re.findall(r"\bX\((\w+)\)", text))
    asked = {expressions.parse(text).operation for expected in assumed.COMPUTED.values() for text in expected}
    assert asked <= there


def test_a_question_has_one_name_and_an_assumption_belongs_to_a_question() -> None:
    names = [question.name for question in questions()]
    assert len(names) == len(set(names))
    assert {*assumed.COMPUTED, *assumed.PADDED, *assumed.LAST_BITS, *assumed.COSTS} <= set(names)
    assert set(memory.PADDINGS) <= set(names)


def test_what_the_manual_s_tables_leave_to_a_board_is_asked() -> None:
    tables = [file.read_text("utf-8") for file in (CHECKOUT / "docs/manual").glob("*.md")]
    left = {name for table in tables for name in re.findall(r"board: (\w+)", table)}
    assert left <= {question.name for question in questions()}


def test_the_last_bits_are_counted() -> None:
    right = arithmetic.exp(Chip())
    assert right["ulp at most"] <= 1
    assert arithmetic.as_good_as(right, assumed.LAST_BITS["exp_last_bits"])
    assert arithmetic.div(Chip()) == {"ulp at most": 0, "of points": 65536, "not the nearest": 0}

    class Coarse(Chip):
        def vector(self, operation: str, a: Tensor, b: Tensor) -> Tensor:
            return super().vector(operation, a, b) * (1 + 2.0**-22)

    coarse = arithmetic.exp(Coarse())
    assert 2 <= coarse["ulp at most"] <= 5
    assert not arithmetic.as_good_as(coarse, assumed.LAST_BITS["exp_last_bits"])


@pytest.mark.parametrize(("name", "padding"), memory.PADDINGS.items())
def test_fillers_are_named(name: str, padding: memory.Padding) -> None:
    filler = "the padding value" if padding.is_pad else "the first element"
    expected = {"left": filler} if padding.left else {}
    assert memory.padded(Chip(), padding) == {**expected, "right": filler}


def test_a_filler_without_a_name_and_one_for_each_width_are_told() -> None:
    class Junk(Chip):
        def padded(self, dtype: torch.dtype, count: int, *, is_pad: bool, left: int, right: int) -> Tensor:
            came = super().padded(dtype, count, is_pad=is_pad, left=left, right=right)
            if dtype == torch.int32:
                came[6:] = 9
            return came

    assert memory.padded(Junk(), memory.PADDINGS["pad_filler_left0_right0"]) == {
        "right, 4 bytes": "-7 9 9",
        "behind, 4 bytes": "9 9 9 9 9 9 9 9",
        "right, 2 bytes": "the padding value",
    }


def test_an_answer_stands_beside_what_is_assumed() -> None:
    question = next(question for question in questions() if question.name == "subnormal_div")
    one = Question(question.name, lambda board: {"Div(0x1p-100, 0x1p40)": "0"}, question.assumed)
    assert run._ask(board(Chip()), question)["as assumed"] is True
    assert run._ask(board(Flushing()), question) == {
        "answer": {"Div(0x1p-100, 0x1p40)": "0", "Div(0x1p-140, 0x1p-140)": "1"},
        "assumed": question.assumed,
        "as assumed": False,
    }
    assert run._ask(board(Chip()), one)["as assumed"] is False


def test_a_question_that_fails_says_why_and_the_next_is_asked(monkeypatch, tmp_path, capsys) -> None:
    def fails(board: Board) -> None:
        raise RuntimeError("the kernel of /home/somebody/x.asc is\nwrong")

    asked = [Question("first", fails, {"a": 1}), Question("second", lambda board: {"a": 1}, {"a": 1})]
    monkeypatch.setattr(run, "questions", lambda: asked)
    report: dict[str, Any] = {"kernels": {"self-check": "passed"}, "answers": {}}
    file = tmp_path / "board.json"
    assert run._ask_all(board(Chip()), report, file, 1.0)
    assert run._summarise(report, file) == 0
    written = json.loads(file.read_text("utf-8"))
    assert written["answers"] == {
        "first": {"not asked": "RuntimeError: the kernel of x.asc is wrong", "assumed": {"a": 1}},
        "second": {"answer": {"a": 1}, "assumed": {"a": 1}, "as assumed": True},
    }
    assert written["summary"] == {"as assumed": 1, "measured": 0, "otherwise": [], "not asked": ["first"]}
    assert "2/2 second: as assumed" in capsys.readouterr().err


def test_without_the_kernels_that_ask_every_question_says_why() -> None:
    error = BuildError("The kernels did not compile.", "Mend it.", "bisheng", ("x.asc:1: error: no",))
    question = next(questions())
    assert run._ask(Board(CPU, 48, error), question)["not asked"] == "The kernels did not compile. | x.asc:1: error: no"


@pytest.mark.parametrize("otherwise", [True, False])
def test_the_exit_code_tells_an_answer_that_is_otherwise(otherwise, tmp_path) -> None:
    answer = {"answer": 1, "assumed": 1, "as assumed": not otherwise}
    report = {"kernels": {"self-check": "passed"}, "answers": {"one": answer}}
    assert run._summarise(report, tmp_path / "board.json") == otherwise


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/somebody/cann/bin/bisheng: not found", "<path>: not found"),
        ("error at /tmp/a b/x.asc:12:3", "error at <path> b/x.asc:12:3"),
        ("in ~/kernels/merge.asc, line 3", "in merge.asc, line 3"),
        ("1600 GB/s", "1600 GB/s"),
        ("cross_entropy, 4096 x 8080", "cross_entropy, 4096 x 8080"),
        ("'/usr/local/Ascend/cann'", "'<path>'"),
    ],
)
def test_paths_are_left_out(text: str, left: str, tmp_path) -> None:
    answers.write(tmp_path / "board.json", {"said": [text]})
    assert json.loads((tmp_path / "board.json").read_text("utf-8")) == {"said": [left]}


def test_the_file_has_a_line_for_what_belongs_together() -> None:
    report = {"a": {"b": list(range(60)), "c": {"d": 1, "e": [2, 3]}}, "f": {}}
    text = answers.text_of(report)
    assert json.loads(text) == report
    assert '    "c": {"d": 1, "e": [2, 3]}' in text.splitlines()
    assert max(map(len, text.splitlines())) <= 120


def test_a_machine_without_an_npu_is_told_so(tmp_path, capsys) -> None:
    assert main(["board", str(tmp_path / "board.json")]) == 1
    assert "No NPU" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_told_before_anything_is_built(tmp_path, capsys) -> None:
    assert main(["board", str(tmp_path / "none" / "board.json")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


RATES = re.findall(
    r'\{"(\w+)", [\d.e]+, ([\d.e]+), ([\d.e]+), "([^"]+)", (?:true|false)',
    (VIRTUAL_CANN / "machine/rates.h").read_text("utf-8"),
)


@pytest.mark.parametrize("name", assumed.COSTS)
def test_what_is_assumed_of_costs_is_what_the_timeline_has(name: str) -> None:
    rates = {f"{rate}, {unit}": [float(fast), float(slow)] for rate, fast, slow, unit in RATES}
    assert assumed.COSTS[name].items() <= rates.items()
