"""Quantities, as people write them and as we print them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.errors import ConfigError
from tiercache.units import (
    GIB,
    KIB,
    MIB,
    TIB,
    format_bytes,
    format_duration,
    parse_byte_rate,
    parse_bytes,
    parse_duration,
    parse_operation_rate,
    parse_operations,
    parse_ratio,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", KIB),
        (" 64 KiB ", 64 * KIB),
        ("512MiB", 512 * MIB),
        ("10GB", 10 * 1000**3),
        ("1.5GiB", 3 * GIB // 2),
        ("2TiB", 2 * TIB),
        ("1PB", 10**15),
        ("1PiB", 1 << 50),
        ("9007199254740993", 9007199254740993),
        ("9007199254740993B", 9007199254740993),
        (4096, 4096),
        (0, 0),
    ],
)
def test_parse_bytes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1MiB", "1 2MiB", "1,5GiB", "1MB/s", "2TIBS", "∞", -1]
)
def test_no_size(text: str | int) -> None:
    with pytest.raises(ConfigError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("30", 30.0),
        ("250us", 250e-6),
        ("500ms", 0.5),
        ("60s", 60.0),
        ("5m", 300.0),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
        (30, 30.0),
        (0.5, 0.5),
    ],
)
def test_parse_duration(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1y", "1 minute", "5min", -0.1])
def test_no_duration(text: str | float) -> None:
    with pytest.raises(ConfigError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "ratio"), [("10%", 0.1), ("0.25", 0.25), (" 5 %", 0.05), (0.5, 0.5)]
)
def test_parse_ratio(text: str | float, ratio: float) -> None:
    assert parse_ratio(text) == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["0%", "100%", "150%", "10MiB%", "-5%", "", 0, 1, 1.5, -0.1])
def test_no_ratio(text: str | float) -> None:
    with pytest.raises(ConfigError):
        parse_ratio(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (100 * KIB, "100 KiB"),
        (1.5 * MIB, "1.5 MiB"),
        (2 * TIB, "2.0 TiB"),
        (1 << 50, "1.0 PiB"),
    ],
)
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.45, "450 ms"), (12.34, "12.3 s"), (185, "3:05"), (7385, "2:03:05")],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 1 << 60))
def test_what_is_printed_can_be_read_again_within_its_precision(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.06, abs=0.5)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("500MB/s", 5e8), ("2GiB/s", 2 * GIB), ("1.5kB / s", 1500), ("7/s", 7), ("1kB/sec", 1000)],
)
def test_byte_rates(text: str, rate: float) -> None:
    assert parse_byte_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "rate"), [("20k/s", 20000), ("500/s", 500), ("1.5M/s", 1.5e6), ("0.5 /sec", 0.5)]
)
def test_operation_rates(text: str, rate: float) -> None:
    assert parse_operation_rate(text) == rate
    assert parse_operations(text.partition("/")[0]) == rate


@pytest.mark.parametrize("text", ["", "5", "5MB", "5MB/m", "5Mbit/s", "-5MB/s", "/s", "5MB/s/s"])
def test_what_is_no_byte_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a rate"):
        parse_byte_rate(text)


@pytest.mark.parametrize("text", ["", "5", "5k", "5G/s", "5k/m", "-5/s", "/s", "5KiB/s"])
def test_what_is_no_operation_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a rate"):
        parse_operation_rate(text)


@pytest.mark.parametrize("parse", [parse_bytes, parse_duration, parse_operations, parse_byte_rate])
def test_numbers_beyond_all_floats_are_refused(parse: Callable[[str], float]) -> None:
    for text in ("9" * 400, "9" * 297 + "d", "9" * 295 + "PB/s", "9" * 295 + ".5PB/s"):
        with pytest.raises(ConfigError):
            parse(text)
