"""The demo's plots show the values that they are given."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tiercache.testing.demo_plot import Line, Plot, blocks, round_up, svg

NAMESPACE = "{http://www.w3.org/2000/svg}"


def test_blocks_are_as_high_as_the_values() -> None:
    assert blocks([0, 1, 2, 7]) == "▁▂▃█"
    assert blocks([0, 1], most=7) == "▁▂"
    assert blocks([0, 0]) == "▁▁"
    assert blocks([9], most=7) == "█"
    assert blocks([]) == ""


@pytest.mark.parametrize(
    ("value", "end"), [(0, 1), (1, 1), (1.1, 2), (2.2, 2.5), (83, 100), (790, 800), (5100, 8000)]
)
def test_an_axis_ends_at_a_round_value(value: float, end: float) -> None:
    assert round_up(value) == pytest.approx(end)


def test_an_svg_holds_a_panel_a_line_with_all_points_in_place() -> None:
    plot = Plot(
        title="a <title>",
        step_s=0.5,
        lines=(
            Line(name="training", unit="reads/s", values=[100.0, 0.0, 100.0, 50.0]),
            Line(name="notebook", unit="MB/s", values=[1.0, 2.0, 3.0, 4.0]),
        ),
        marks=((1.0, "policy applied"),),
    )
    drawn = ElementTree.fromstring(svg(plot))
    texts = [one.text for one in drawn.iter(f"{NAMESPACE}text")]
    assert "a <title>" in texts and "training, reads/s" in texts
    assert texts.count("policy applied") == 2
    assert {"0", "25", "50", "75", "100"} <= set(texts)
    lines = [one.get("points", "") for one in drawn.iter(f"{NAMESPACE}polyline")]
    assert len(lines) == 2
    first = [tuple(map(float, pair.split(","))) for pair in re.split(" ", lines[0])]
    assert len(first) == 4
    xs, ys = zip(*first, strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[3] - xs[2], abs=0.2)
    # Down is more on a screen: the zero lies lowest, the half between.
    assert ys[0] == ys[2] < ys[3] < ys[1]
    assert plot.seconds == 2.0


def test_large_values_are_written_out() -> None:
    drawn = svg(Plot(title="", step_s=1.0, lines=(Line(name="n", unit="u", values=[19_000.0]),)))
    assert ">20,000<" in drawn and ">5,000<" in drawn
