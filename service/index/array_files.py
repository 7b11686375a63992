"""Files of named arrays in the format of NumPy's savez, each array aligned in the file so that it can be
memory-mapped."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from service.index.backend import Arrays

ALIGNMENT = 64
"""Each array begins at a multiple of this many bytes: a processor's cache line."""
LOCAL_HEADER, NAME_LENGTHS = 30, 26
"""Bytes of a zip member's local header without its name and extra field, and the offset in it of these fields'
lengths."""
ZIP64_BYTES = 20
"""Bytes that ZipFile adds to the extra field for 64-bit sizes."""
WRITE_BATCH_SIZE = 1 << 20
"""Bytes written at a time, without a copy: NumPy would copy 16 MiB at a time and hold the GIL meanwhile."""
PADDING_FIELD = 0xD935
"""Id of an entry in a member's extra field that only pads, to align what follows, as in Android's zipalign."""


def save_arrays(file: BinaryIO, arrays: Arrays) -> None:
    """Write arrays to the beginning of an empty file."""
    with ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = ZipInfo(f"{name}.npy")
            begin = file.tell() + LOCAL_HEADER + len(member.filename.encode()) + ZIP64_BYTES + 4
            padding = -begin % ALIGNMENT
            member.extra = struct.pack("<HH", PADDING_FIELD, padding) + bytes(padding)
            header = npy.header_data_from_array_1_0(np.asanyarray(array))
            memory = np.ascontiguousarray(array.T if header["fortran_order"] else array).reshape(-1).view(np.uint8).data
            with archive.open(member, "w", force_zip64=True) as stream:
                npy.write_array_header_1_0(stream, header)  # pads itself, too
                for first in range(0, len(memory), WRITE_BATCH_SIZE):
                    stream.write(memory[first : first + WRITE_BATCH_SIZE])


def load_arrays(path: Path) -> Arrays:
    """Read the arrays of a file into memory, read-only. Raises BadZipFile or ValueError for a file of another format.

    Arrays are read as bytes. NumPy would ask for huge pages, for which the system may have to move other memory, and
    would read small pieces through the archive, with checksums.
    """
    arrays = {}
    with path.open("rb") as file:
        for name, header in _headers(file).items():
            file.seek(header.begin)
            arrays[name] = header.array(file.read(header.size), 0)
    return arrays


def map_arrays(path: Path) -> Arrays:
    """Map the arrays of a file: read-only memory, whose pages the system shares among all processes that map the file.
    Raises BadZipFile or ValueError for a file of another format."""
    with path.open("rb") as file:
        headers = _headers(file)
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {name: header.array(pages, header.begin) for name, header in headers.items()}


@dataclass(frozen=True, slots=True)
class _Header:
    """Shape and dtype of an array, whether it is stored in column-major order, and the offset of its first byte in the
    file."""

    shape: tuple[int, ...]
    in_columns: bool
    dtype: np.dtype[Any]
    begin: int

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, memory: bytes | mmap.mmap, begin: int) -> npt.NDArray[Any]:
        """Return the array whose bytes are in `memory` from `begin` on."""
        array = np.ndarray(self.shape[::-1] if self.in_columns else self.shape, self.dtype, memory, begin)
        return array.T if self.in_columns else array


def _headers(file: BinaryIO) -> dict[str, _Header]:
    """Return the header of each array of a file by the array's name."""
    headers = {}
    with ZipFile(file) as archive:
        for member in archive.infolist():
            file.seek(member.header_offset + NAME_LENGTHS)
            lengths = struct.unpack("<HH", file.read(4))
            with archive.open(member) as stream:
                if npy.read_magic(stream) != (1, 0):  # others are of arrays with many named fields
                    raise ValueError(f"{member.filename} has an unknown version of the .npy format")
                shape, in_columns, dtype = npy.read_array_header_1_0(stream)
                begin = member.header_offset + LOCAL_HEADER + sum(lengths) + stream.tell()
            headers[member.filename.removesuffix(".npy")] = _Header(shape, in_columns, dtype, begin)
    return headers
