"""The plots of the page as positions in percent, so that they scale with it and need no script.

No line is involved. A chart is an axis and one strip for each method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from protocols.compare.figures import Figures, amount, nbytes, seconds, spread
from protocols.compare.measure import ROUND_TRIPS


@dataclass(frozen=True)
class Mark:
    """A dot at `x` percent, or a bar from `x` that is `width` percent wide."""

    x: float
    style: str
    title: str  # shown when pointed at
    width: float = 0.0


@dataclass(frozen=True)
class Strip:
    """One method's line of a chart."""

    label: str
    value: str
    dots: tuple[Mark, ...] = ()
    bars: tuple[Mark, ...] = ()
    line: tuple[float, float] | None = None  # from, to, in percent
    faint: bool = False  # a hypothetical method


@dataclass(frozen=True)
class Chart:
    """Strips over one axis."""

    strips: tuple[Strip, ...]
    ticks: tuple[tuple[float, str], ...]  # (percent, label)
    reference: float | None = None  # a dashed line, in percent


def scores(figures: Sequence[Figures], ceiling: float = 1.0) -> Chart:
    """Mean and interval of each score; the centralised mean is the reference."""
    ends = [[v for v in (f.score.low, f.score.mean, f.score.high) if not math.isnan(v)] for f in figures]
    low, high = min(min(e) for e in ends), min(ceiling, max(max(e) for e in ends))
    step = _step(max(high - low, 1e-3))
    low, high = math.floor(low / step) * step, min(ceiling, math.ceil(high / step) * step)

    def at(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low or 1.0)

    strips = []
    for f in figures:
        s = f.score
        line = None if math.isnan(s.low) else (at(s.low), at(s.high))
        dot = Mark(at(s.mean), "client", f"{f.name}: {spread(s, 4)}")
        strips.append(Strip(f.name, spread(s), (dot,), (), line, f.method.hypothetical))
    count = round((high - low) / step)
    places = max(0, -math.floor(math.log10(step)))
    ticks = tuple((at(low + i * step), f"{low + i * step:.{places}f}") for i in range(count + 1))
    central = [f.score.mean for f in figures if f.name == "centralised"]
    return Chart(tuple(strips), ticks, at(central[0]) if central else None)


def traffic(figures: Sequence[Figures]) -> Chart:
    """Bytes of training (dot) and of predicting the test rows (ring), on a logarithmic axis."""
    sizes = {f.name: [f.get("bytes", phase=p).mean for p in ("train", "predict")] for f in figures}
    axis = _Log([v for pair in sizes.values() for v in pair])
    strips = []
    for f in figures:
        train, predict = sizes[f.name]
        dots = [Mark(axis(predict), "ring", f"predicting: {nbytes(predict)}")] if predict else []
        dots += [Mark(axis(train), "client", f"training: {nbytes(train)}")] if train else []
        line = (0.0, max(dot.x for dot in dots)) if dots else None
        said = nbytes(train) if train else "nothing leaves"
        strips.append(Strip(f.name, said, tuple(dots), (), line, f.method.hypothetical))
    return Chart(tuple(strips), tuple((axis(v), nbytes(v)) for v in axis.ticks))


def times(figures: Sequence[Figures]) -> Chart:
    """Simulated seconds of training at each round trip, on a logarithmic axis."""
    found = {f.name: [f.get("time", rtt_ms=rtt).mean for rtt in ROUND_TRIPS] for f in figures}
    axis = _Log([v for values in found.values() for v in values])
    strips = []
    for f in figures:
        values = found[f.name]
        dots = tuple(
            Mark(axis(v), f"rtt{i}", f"{rtt} ms: {seconds(v)}")
            for i, (v, rtt) in enumerate(zip(values, ROUND_TRIPS, strict=True))
        )
        line = (axis(values[0]), axis(values[-1]))
        ends = seconds(values[0]), seconds(values[-1])
        said = ends[0] if ends[0] == ends[1] else " to ".join(ends)
        strips.append(Strip(f.name, said, dots, (), line, f.method.hypothetical))
    return Chart(
        tuple(strips), tuple((axis(v), amount(v, "s") if v >= 1 else seconds(v)) for v in axis.ticks)
    )


def work(figures: Sequence[Figures]) -> Chart:
    """The part of the training FLOPs at the owners of data and at servers."""
    strips = []
    for f in figures:
        mine = 100 * f.share("client")
        other = 100 * f.share("other")
        bars = (
            Mark(0.0, "client", f"owners of data: {mine:.1f} %", mine),
            Mark(mine, "server", f"servers: {other:.1f} %", other),
        )
        total = amount(f.get("flops", phase="train").mean, "FLOP")
        strips.append(Strip(f.name, total, (), bars, None, f.method.hypothetical))
    return Chart(tuple(strips), tuple((float(p), f"{p} %") for p in (0, 25, 50, 75, 100)))


class _Log:
    """A logarithmic axis over whole powers of ten; 0 stands at its start."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [v for v in values if v > 0] or [1.0]
        self.low = math.floor(math.log10(min(positive)))
        self.high = max(math.ceil(math.log10(max(positive))), self.low + 1)
        every = math.ceil((self.high - self.low) / 5)
        self.ticks = [10.0**power for power in range(self.low, self.high + 1, every)]

    def __call__(self, value: float) -> float:
        if value <= 0:
            return 0.0
        return 100 * (math.log10(value) - self.low) / (self.high - self.low)


def _step(extent: float) -> float:
    """A round step that gives about five ticks."""
    raw = extent / 5
    base: float = 10.0 ** math.floor(math.log10(raw))
    return next(base * k for k in (1, 2, 5, 10) if base * k >= raw)
