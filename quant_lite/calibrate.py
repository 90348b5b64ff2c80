"""Ranges of activations, found on calibration data before a model runs: for scales that are fixed ("static").

    observer = PercentileObserver(99.99)
    for batch in batches:
        observer.update(layer_input(batch))
    scale, zero_point = range_parameters(*observer.range(), scheme="zeropoint")
    q = quantize_with(x, scale, zero_point)

Each observer keeps at most a histogram, however much it sees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quant_lite.quantize import WHOLE, _highest, _range, absmax_quantize, zeropoint_quantize

__all__ = ["MSEObserver", "MinMaxObserver", "PercentileObserver", "range_parameters"]

_BINS = 8192  # of a histogram: 64 or more a step where the range is all of it
_CANDIDATES = 256


def range_parameters(low: float, high: float, scheme: str = "absmax", bits: int = 8) -> tuple[Tensor, Tensor | None]:
    """The scale and zero point that `quantize_with` takes, for numbers from `low` to `high`.

    Args:
        low, high: finite, `low` <= `high`; widened to hold 0.
        scheme: "absmax", without a zero point, or "zeropoint".
        bits: 8 or 4.

    Returns:
        0-d tensors: float32, and int8 or None.
    """
    if scheme not in ("absmax", "zeropoint"):
        raise ValueError(f"scheme={scheme!r} is not known: take absmax or zeropoint")
    if low > high:
        raise ValueError(f"the range from {low} to {high} is empty: an observer's range() goes from low to high")
    quantize = absmax_quantize if scheme == "absmax" else zeropoint_quantize
    q = quantize(torch.tensor([low, high], dtype=torch.float32, device="cpu"), bits=bits)
    return q.scale[0], None if scheme == "absmax" else q.zero_point[0]


class MinMaxObserver:
    """The range of all that was seen: nothing is cut, and one outlier makes every step larger.

    r = [min x, max x], widened to hold 0 (Jacob et al. 2017, section 3.1, without their moving average).
    """

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0

    def update(self, x: Tensor) -> None:
        """See a batch: float32, float16 or bfloat16, finite, of any shape."""
        low, high = _ends(x)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float]:
        """(low, high), which hold 0."""
        return self.low, self.high


class PercentileObserver:
    """Cuts the few largest: r = [-t, t], with a share of `percentile` / 100 of all `|x|` at most t.

    Wu et al. 2020 ("Integer quantization for deep learning inference"), section 3.3. It is never wider than what was
    seen. t is the end of a bin of a histogram, so up to 1/4096 of `max|x|` above the exact percentile.

    Args:
        percentile: above 0, at most 100, which cuts nothing.
    """

    def __init__(self, percentile: float = 99.99) -> None:
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile={percentile}: it is above 0 and at most 100")
        self.percentile, self.seen, self.histogram = percentile, MinMaxObserver(), _Histogram()

    def update(self, x: Tensor) -> None:
        """See a batch: float32, float16 or bfloat16, finite, of any shape."""
        self.seen.update(x)
        self.histogram.add(x)

    def range(self) -> tuple[float, float]:
        """(low, high), which hold 0."""
        counts = self.histogram.counts
        needed = math.ceil(round(self.percentile * float(counts.sum()) / 100, 6))  # 99.9% of 10,000 is 9,990, not more
        bins = int((counts.cumsum(0) < needed).sum()) + 1
        return _within(self.seen, bins * self.histogram.width)


class MSEObserver:
    """Cuts where the mean squared error is smallest: t = argmin E (x - x_hat(t))^2 with r = [-t, t].

    Choukroun et al. 2019 ("Low-bit quantization of neural networks for efficient inference"). A cut loses
    more of the largest and less, s^2 / 12, of all others. The error is that of absmax on the middles of a histogram's
    bins, for 256 t up to `max|x|`.

    Args:
        bits: 8 or 4, of the quantizer that will use the range.
    """

    def __init__(self, bits: int = 8) -> None:
        self.highest, self.seen, self.histogram = _highest(bits), MinMaxObserver(), _Histogram()

    def update(self, x: Tensor) -> None:
        """See a batch: float32, float16 or bfloat16, finite, of any shape."""
        self.seen.update(x)
        self.histogram.add(x)

    def range(self) -> tuple[float, float]:
        """(low, high), which hold 0."""
        largest = max(-self.seen.low, self.seen.high)
        if largest == 0:
            return 0.0, 0.0
        counts = self.histogram.counts
        middles = (torch.arange(_BINS, dtype=torch.float64, device="cpu") + 0.5) * self.histogram.width
        cuts = torch.arange(1, _CANDIDATES + 1, dtype=torch.float64, device="cpu") / _CANDIDATES * largest
        errors = torch.stack([self._squared_error(counts, middles, float(cut)) for cut in cuts])
        return _within(self.seen, float(cuts[errors.argmin()]))

    def _squared_error(self, counts: Tensor, middles: Tensor, cut: float) -> Tensor:
        step = cut / self.highest
        x_hat = (middles / step).round().clamp(max=self.highest) * step
        return (counts * (middles - x_hat).square()).sum()


class _Histogram:
    """Counts of `|x|` in bins of equal width, which doubles when something larger comes: counts stay exact."""

    def __init__(self) -> None:
        self.counts, self.width = torch.zeros(_BINS, dtype=torch.float64, device="cpu"), 0.0

    def add(self, x: Tensor) -> None:
        low, high = _ends(x)
        largest = max(-low, high)
        if largest > 0 and self.width == 0:
            self.width = 2.0 ** math.ceil(math.log2(largest)) / _BINS
        while largest > self.width * _BINS:
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat((pairs, torch.zeros_like(pairs)))
            self.width *= 2
        for part in x.detach().flatten().split(2**20):
            places = part.double().abs().div_(self.width or 1.0).long().clamp_(max=_BINS - 1)
            self.counts += torch.bincount(places.cpu(), minlength=_BINS)


def _ends(x: Tensor) -> tuple[float, float]:
    """Smallest and largest of x and 0; refuses NaN and infinity."""
    low, high = _range(x.detach(), WHOLE)
    return float(low), float(high)


def _within(seen: MinMaxObserver, cut: float) -> tuple[float, float]:
    """[-cut, cut], no wider than what was seen."""
    return max(seen.low, -cut), min(seen.high, cut)
