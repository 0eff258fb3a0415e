"""The CRC32C of a whole from the CRC32Cs of its parts (the method of zlib's ``crc32_combine``).

Appending n zero bytes to a message changes its checksum by a linear map over GF(2), and the
checksum of A and B together is that of A, so mapped, xor that of B.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from tiercache.model import PAGE_BYTES

POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected

_Tables = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def of_pages(crcs: Iterable[int], size_bytes: int, *, start: int = 0) -> int:
    """Return the checksum of bytes whose pages have these checksums; ``start`` is that of what
    stands before them. ``size_bytes`` is the length of the pages together."""
    total, left = start, size_bytes
    for crc in crcs:
        total = combine(total, crc, min(left, PAGE_BYTES))
        left -= PAGE_BYTES
    return total


def combine(first: int, second: int, second_bytes: int) -> int:
    """Return the checksum of a part of checksum ``first`` and one of ``second`` behind it."""
    power = 0
    while first and second_bytes >> power:
        if second_bytes >> power & 1:
            a, b, c, d = _zeros(power)
            first = a[first & 255] ^ b[first >> 8 & 255] ^ c[first >> 16 & 255] ^ d[first >> 24]
        power += 1
    return first ^ second


@cache
def _columns(power: int) -> tuple[int, ...]:
    """Return what 2^power zero bytes make of each bit of a checksum."""
    if power == 0:
        one_bit = (POLYNOMIAL, *(1 << bit for bit in range(31)))
        columns = one_bit
        for _ in range(3):
            columns = tuple(_times(columns, column) for column in columns)
        return columns
    half = _columns(power - 1)
    return tuple(_times(half, column) for column in half)


def _times(columns: tuple[int, ...], vector: int) -> int:
    total, bit = 0, 0
    while vector:
        if vector & 1:
            total ^= columns[bit]
        vector >>= 1
        bit += 1
    return total


@cache
def _zeros(power: int) -> _Tables:
    """Return the map by the bytes of a checksum: four look-ups, where bits would take 32."""
    columns = _columns(power)
    a, b, c, d = (
        tuple(_times(columns, byte << shift) for byte in range(256)) for shift in (0, 8, 16, 24)
    )
    return a, b, c, d
