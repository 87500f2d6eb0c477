"""Checksums of a shard, which lie in its footer and are compared before Arrow parses anything.

The footer's metadata ``subtok.check`` hold, in hexadecimal digits, two CRC-32 of each row group,
that of its columns and that of its records, and the SHA-256 of the footer as if its own place held
zeros. The place is left free when Arrow writes the footer, and filled in after.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from subtok_data.errors import StoreError

__all__ = [
    "CHECK",
    "INFO",
    "LENGTH",
    "MAGIC",
    "empty_checks",
    "find_checks",
    "footer_check",
    "group_checks",
    "group_spans",
    "seal",
]

MAGIC = b"PAR1"
INFO = b"subtok"
CHECK = b"subtok.check"
LENGTH = struct.Struct("<I")
_BEGIN = b"crc32,sha256:"  # the checksums follow
_FOOTER_HEX = 64
_GROUP_HEX = 16


def empty_checks(groups: int) -> bytes:
    """Place for the checksums of so many row groups and the footer."""
    return _BEGIN + b"0" * (groups * _GROUP_HEX + _FOOTER_HEX)


def group_checks(checks: bytes, groups: int) -> list[tuple[int, int]] | None:
    """Checksums of the columns and of the records of each row group; None if they are of others.

    Examples
    --------
    >>> group_checks(empty_checks(2)[len(b"crc32,sha256:") :], 2)
    [(0, 0), (0, 0)]
    """
    if len(checks) != groups * _GROUP_HEX + _FOOTER_HEX:
        return None
    hexes = [checks[number * _GROUP_HEX :][:_GROUP_HEX] for number in range(groups)]
    return [(int(one[:8], 16), int(one[8:], 16)) for one in hexes]


def group_spans(metadata: Any) -> Iterator[tuple[int, int, int]]:
    """Of each row group, where its columns begin, where its records begin, where it ends."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        first, last = group.column(0), group.column(group.num_columns - 1)
        begin = last.data_page_offset
        yield first.data_page_offset, begin, begin + last.total_compressed_size


def find_checks(footer: bytes) -> tuple[int, int] | None:
    """Where the hexadecimal checksums begin and end in a footer."""
    place = footer.rfind(_BEGIN)
    if place < 0:
        return None
    begin = end = place + len(_BEGIN)
    while footer[end : end + 1] in _HEX:
        end += 1
    return (begin, end) if end - begin >= _FOOTER_HEX else None


_HEX = frozenset(bytes([c]) for c in b"0123456789abcdef")


def footer_check(footer: bytes, end: int) -> bytes:
    """SHA-256 of a footer, as if its own place, which ends at ``end``, held zeros."""
    zeros = b"0" * _FOOTER_HEX
    return hashlib.sha256(footer[: end - _FOOTER_HEX] + zeros + footer[end:]).hexdigest().encode()


def seal(file: IO[bytes]) -> None:
    """Put the checksums into the footer of a file that was just written."""
    size = file.seek(0, io.SEEK_END)
    file.seek(size - 8)
    length = LENGTH.unpack(file.read(4))[0] + 8
    file.seek(size - length)
    footer = file.read(length)
    place = find_checks(footer)
    if place is None:
        raise StoreError("this version of pyarrow writes another footer: report it")
    begin, end = place
    checks = b""
    for columns, records, stop in group_spans(pq.read_metadata(pa.BufferReader(MAGIC + footer))):
        checks += b"%08x%08x" % (_crc(file, columns, records), _crc(file, records, stop))
    if len(checks) != end - begin - _FOOTER_HEX:
        raise StoreError("this version of pyarrow writes other row groups: report it")
    footer = footer[:begin] + checks + footer[end - _FOOTER_HEX :]
    footer = footer[: end - _FOOTER_HEX] + footer_check(footer, end) + footer[end:]
    file.seek(size - length)
    file.write(footer)


def _crc(file: IO[bytes], begin: int, end: int) -> int:
    file.seek(begin)
    crc = 0
    while begin < end:
        content = file.read(min(1 << 24, end - begin))
        crc = zlib.crc32(content, crc)
        begin += len(content)
    return crc
