"""Scalars as TensorBoard reads them: files of events, written without any package.

A file is a row of records: length (uint64), its checksum, the bytes of an `Event`, their checksum; the checksum is
CRC-32C, turned by 15 bits and moved by a constant, all little-endian. `Event` and its parts are protocol buffers
(tensorboard/compat/proto/event.proto and summary.proto) of which only the fields used here are encoded.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _message(number: int, content: bytes) -> bytes:
    """Encode a field that has a length: a string, or a message inside."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _event(wall_time: float, step: int, content: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", wall_time) + (b"\x10" + _varint(step) if step else b"") + content


def _scalar(tag: str, value: float) -> bytes:
    return _message(1, _message(1, tag.encode()) + b"\x15" + struct.pack("<f", _single(value)))


def _single(value: float) -> float:
    """Beyond the range of float32 is infinity, as numpy has it, instead of an error."""
    return value if not abs(value) > 3.4028235e38 else float("inf") * (1 if value > 0 else -1)


class EventFile:
    """A new file of events in a folder, in which earlier ones may stand.

    Args:
        folder: is made where it is missing.
        step: where the run goes on; readers forget what earlier files say of the steps beyond it.

    Raises:
        OSError: the disk refuses, here or later.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*tfevents*")))  # files are read in the order of their names
        name = f"events.out.tfevents.{int(time.time()):010d}.{number:05d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "xb")
        self._write(0, _message(3, b"brain.Event:2"))
        if step:
            # Session log, status START: what has this step or a later one is void.
            self._write(step + 1, _message(7, b"\x08\x01"))

    def scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step, with the tags `<name>/<key>`; they are in the file when this returns."""
        self._write(step, _message(5, b"".join(_scalar(f"{name}/{key}", value) for key, value in values.items())))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, step: int, content: bytes) -> None:
        data = _event(time.time(), step, content)
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked(length) + data + _masked(data))
        self._file.flush()
