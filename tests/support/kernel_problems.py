# SPDX-License-Identifier: Apache-2.0
"""Problems for the kernel driver: their encoding, the decoding of answers, and the exact results in float64."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import torch

NONE, MEAN, SUM = 0, 1, 2
Z_LOSS, LOG_PROB, LSE, ARGMAX, ENTROPY = 1, 2, 4, 8, 16
OF_LOSS, OF_Z_LOSS, OF_LSE, OF_ENTROPY, OF_LOG_PROB = 1, 2, 4, 8, 16
IGNORE = -100

DTYPES = ["float32", "float64", "bfloat16", "float16"]  # in the order of the library's enum


def stored(values: np.ndarray, dtype: str) -> bytes:
    if values.size == 0:
        return b""
    return torch.from_numpy(values).to(getattr(torch, dtype)).contiguous().view(torch.uint8).numpy().tobytes()


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """The values rounded to what `dtype` can hold, as float64."""
    return torch.from_numpy(values).to(getattr(torch, dtype)).double().numpy()


def spread(rows: np.ndarray, stride: int, between: float) -> np.ndarray:
    """The rows in one vector, whose starts are `stride` elements apart; `between` fills the gaps."""
    count, columns = rows.shape
    vector = np.full((count - 1) * stride + columns if count else 0, between, rows.dtype)
    step = vector.itemsize
    np.lib.stride_tricks.as_strided(vector, rows.shape, (stride * step, step))[...] = rows
    return vector


@dataclass
class Problem:
    dtype: str
    logits: np.ndarray  # float64, with values that dtype can hold
    target: np.ndarray
    weight: np.ndarray | None = None
    reduction: int = MEAN
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0
    logit_scale: float = 1.0
    outputs: int = Z_LOSS | LOG_PROB | LSE | ARGMAX | ENTROPY
    gradients: dict[int, np.ndarray] = field(default_factory=dict)
    ignore_index: int = IGNORE
    half_loss: bool = False  # loss, z_loss and their gradients have the input's dtype
    row_padding: int = 0  # columns between the end of a row and the next row; -classes makes all rows one
    positions: int = 0  # of an image, for [N, C, L] logits, in which each class is a plane; 0: [N, C]
    class_padding: int = 0  # elements between the end of a plane and the next plane
    image_padding: int = 0
    target_stride: int = 1
    gradient_stride: int = 1  # of gradients with one element for each row
    log_prob_padding: int = 0  # row_padding of log_prob's gradient
    input_offset: int = 0  # in elements, from malloc's aligned address
    int32_target: bool = False
    in_place: bool = False
    threads: int = 1
    name: str = ""

    @property
    def acc(self) -> str:
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def strides(self) -> tuple[int, int]:
        """Elements from one image to the next, and from one class to the next; in [N, C] each row is an image."""
        classes = self.logits.shape[1]
        if not self.positions:
            return classes + self.row_padding, 1
        plane = self.positions + self.class_padding
        return classes * plane + self.image_padding, plane

    def as_stored(self, rows: np.ndarray) -> np.ndarray:
        """`[rows, classes]` values in the memory order of the gradient, or of logits without padding."""
        images = rows.reshape(-1, max(self.positions, 1), rows.shape[1])
        return images.transpose(0, 2, 1) if self.positions else rows

    @property
    def loss_dtype(self) -> str:
        return self.dtype if self.half_loss else self.acc

    def encoded(self) -> bytes:
        rows, classes = self.logits.shape
        of_loss = (OF_LOSS, OF_Z_LOSS, self.loss_dtype)
        of_row = (OF_LSE, OF_ENTROPY, self.acc)
        log_prob_stride = classes + self.log_prob_padding
        out = BytesIO()
        out.write(
            struct.pack(
                "=20q4d",
                *(DTYPES.index(self.dtype), DTYPES.index(self.loss_dtype), rows, classes),
                *(self.positions or 1, *self.strides),
                *(not self.int32_target, self.target_stride, self.weight is not None),
                *(self.reduction, self.ignore_index, self.outputs, sum(self.gradients)),
                *(self.stride_of(of_loss[:2]), self.stride_of(of_row[:2]), log_prob_stride),
                *(self.in_place, self.input_offset, self.threads),
                *(self.label_smoothing, self.z_loss, self.softcap, self.logit_scale),
            )
        )
        out.write(stored(self._spread_logits(), self.dtype))
        targets = spread(self.target[:, None], self.target_stride, 1 << 30)
        out.write(targets.astype(np.int32 if self.int32_target else np.int64).tobytes())
        if self.weight is not None:
            out.write(stored(self.weight, self.acc))
        for *bits, dtype in (of_loss, of_row):
            for values in (self.gradients[bit] for bit in bits if bit in self.gradients):
                column = np.broadcast_to(values, rows)[:, None]
                out.write(stored(spread(column, self.stride_of(bits), np.nan), dtype))
        if OF_LOG_PROB in self.gradients:
            out.write(stored(spread(self.gradients[OF_LOG_PROB], log_prob_stride, np.nan), self.dtype))
        return out.getvalue()

    def _spread_logits(self) -> np.ndarray:
        of_image, of_class = self.strides
        if not self.positions:
            return spread(self.logits, of_image, np.nan)
        planes = [spread(image, of_class, np.nan) for image in self.as_stored(self.logits)]
        return spread(np.stack(planes), of_image, np.nan) if planes else np.zeros(0)

    def stride_of(self, bits: Sequence[int]) -> int:
        """0 for gradients of one element, which stands for all rows like a tensor from expand."""
        one = all(len(self.gradients[bit]) == 1 for bit in bits if bit in self.gradients)
        return 0 if one else self.gradient_stride

    def decoded(self, answer: BytesIO) -> dict[str, np.ndarray]:
        rows, classes = self.logits.shape

        def take(dtype: str, *shape: int) -> np.ndarray:
            torch_dtype = getattr(torch, dtype)
            size = int(np.prod(shape)) * torch_dtype.itemsize
            data = bytearray(answer.read(size))
            if len(data) < size:
                raise EOFError
            if not data:
                return np.zeros(shape)
            values = torch.frombuffer(data, dtype=torch_dtype).reshape(shape)
            return values.numpy() if dtype == "int64" else values.double().numpy()

        reduced = (rows,) if self.reduction == NONE else ()
        result = {"loss": take(self.loss_dtype, *reduced)}
        if self.outputs & Z_LOSS:
            result["z_loss"] = take(self.loss_dtype, *reduced)
        if self.outputs & LOG_PROB:
            result["log_prob"] = take(self.dtype, rows, classes)
        if self.outputs & LSE:
            result["lse"] = take(self.acc, rows)
        if self.outputs & ARGMAX:
            result["argmax"] = take("int64", rows)
        if self.outputs & ENTROPY:
            result["entropy"] = take(self.acc, rows)
        result["row_stats"] = take(self.acc, 2, rows)
        result["denominators"] = take(self.acc, 2)
        gradient = take(self.dtype, rows, classes)
        if self.positions:
            gradient = gradient.reshape(-1, classes, self.positions).swapaxes(1, 2).reshape(rows, classes)
        result["gradient"] = gradient
        return result


@np.errstate(all="ignore")
def truth(problem: Problem) -> dict[str, np.ndarray]:
    """The results in float64, by definition. `gradient_terms` sums the magnitudes of each gradient's terms."""
    rows, classes = problem.logits.shape
    every_row = np.arange(rows)
    x, slope = problem.logit_scale * problem.logits, np.full((rows, classes), problem.logit_scale)
    if problem.softcap:
        t = np.tanh(x / problem.softcap)
        e = np.exp(-2 * np.abs(x / problem.softcap))
        x, slope = problem.softcap * t, slope * 4 * e / (1 + e) ** 2
    highest = x.max(axis=1, initial=-np.inf)
    # The max's own 1 is left out of the sum: 1 + rest would round the rest of a confident row in float64, too.
    e = np.exp(x - highest[:, None])
    if classes and rows:
        e[every_row, np.where(np.isnan(x), -np.inf, x).argmax(axis=1)] -= 1
    log_sum = np.log1p(e.sum(axis=1))
    lse = highest + log_sum
    log_prob = (x - highest[:, None]) - log_sum[:, None]
    p = np.exp(log_prob)
    entropy = -np.where(p == 0, 0, p * log_prob).sum(axis=1)

    valid = problem.target != problem.ignore_index
    y = np.where(valid, problem.target, 0)
    w = np.ones(classes) if problem.weight is None else problem.weight
    ls = problem.label_smoothing
    ce = (1 - ls) * -w[y] * log_prob[every_row, y]
    if ls:
        ce = ce - ls / classes * (w * log_prob).sum(axis=1)
    ce = np.where(valid, ce, 0)
    z = np.where(valid, problem.z_loss * lse**2, 0) if problem.z_loss else np.zeros(rows)
    weight_sum, count = w[y][valid].sum(), valid.sum()
    ce_over, z_over = (weight_sum, count) if problem.reduction == MEAN else (np.float64(1), np.float64(1))
    loss, z_loss = ce + z, z
    if problem.reduction != NONE:
        loss, z_loss = ce.sum() / ce_over + z.sum() / z_over, z.sum() / z_over

    def of(bit: int) -> np.ndarray:
        return np.broadcast_to(problem.gradients.get(bit, np.zeros(1)), rows)

    # The gradient with respect to log_prob; below, the softmax's Jacobian subtracts p times the row's total.
    g = np.where(valid, of(OF_LOSS) / ce_over, 0)
    gz = np.where(valid, (of(OF_LOSS) + of(OF_Z_LOSS)) / z_over, 0) if problem.z_loss else np.zeros(rows)
    hard = g * (1 - ls) * w[y]
    smooth = g * ls / classes if ls else np.zeros(rows)
    upstream = -smooth[:, None] * w + problem.gradients.get(OF_LOG_PROB, 0)
    of_lse = gz * 2 * problem.z_loss * np.where(gz == 0, 0, lse) + of(OF_LSE)
    of_hard = p * hard[:, None]
    of_hard[every_row, y] = hard * np.expm1(log_prob[every_row, y])
    gradient = of_hard + upstream - p * upstream.sum(axis=1)[:, None] + p * of_lse[:, None]
    terms = np.abs(of_hard) + np.abs(upstream) + p * (np.abs(upstream.sum(axis=1)) + np.abs(of_lse))[:, None]
    if problem.dtype == "float64":  # for float64, the kernels' sum in double is no wider than its terms
        terms = terms + p * np.abs(hard)[:, None]
    log_p, of_entropy = np.where(p == 0, 0, log_prob), p * of(OF_ENTROPY)[:, None]
    if OF_ENTROPY in problem.gradients:
        part = of_entropy * (log_p + entropy[:, None])
        gradient, terms = gradient - part, terms + np.abs(part)
    # A row into which no gradient flows has gradient 0, whatever its logits.
    flows = valid & bool({OF_LOSS, OF_Z_LOSS} & problem.gradients.keys())
    flows |= bool({OF_LSE, OF_ENTROPY, OF_LOG_PROB} & problem.gradients.keys())
    nan_at = np.isnan(x).argmax(axis=1) if classes else None
    return {
        "loss": loss,
        "z_loss": z_loss,
        "log_prob": log_prob,
        "lse": np.where(np.isnan(log_sum), np.nan, lse),
        "argmax": np.where(np.isnan(x).any(axis=1), nan_at, np.where(np.isnan(x), -np.inf, x).argmax(axis=1)),
        "entropy": np.where(np.isnan(log_sum), np.nan, entropy),
        "row_stats": np.stack([highest, log_sum]),
        "denominators": np.array([weight_sum, count]),
        "gradient": np.where(flows[:, None], gradient * slope, 0),
        "gradient_terms": np.where(flows[:, None], terms * np.abs(slope), 0),
        "target": y,
        "cancelled": np.abs(of_entropy * slope) * (1 + np.abs(log_p) + np.abs(entropy)[:, None]),
        "summed": np.abs(p * slope) * np.abs(upstream).sum(axis=1)[:, None],
        "hard": np.abs(hard * slope[every_row, y]),
    }
