"""Files of named arrays: those of NumPy's savez, with each array at a place in the file from which it can be mapped."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy

from service.index.backend import Arrays

ALIGNMENT = 64
"""Bytes at a multiple of which an array begins: those of a processor's cache line."""
LOCAL_HEADER, NAME_LENGTHS = 30, 26
"""Bytes of a member's header in the file without its name and extra field, and where in it the lengths of these are."""
ZIP64_BYTES = 20
"""Bytes that ZipFile adds to the extra field for sizes of 64 bits."""
PADDING_FIELD = 0xD935
"""Id of a field of an extra field that is only there to move what follows, as Android's zipalign has it."""


def save_arrays(file: BinaryIO, arrays: Arrays) -> None:
    """Write arrays to the beginning of an empty file."""
    with ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = ZipInfo(f"{name}.npy")
            begin = file.tell() + LOCAL_HEADER + len(member.filename.encode()) + ZIP64_BYTES + 4
            padding = -begin % ALIGNMENT
            member.extra = struct.pack("<HH", PADDING_FIELD, padding) + bytes(padding)
            with archive.open(member, "w", force_zip64=True) as stream:
                npy.write_array(stream, np.asanyarray(array), allow_pickle=False)  # pads its own header, too


def load_arrays(path: Path) -> Arrays:
    """Read the arrays of a file into memory; ValueError where it is no such file. They are copied from its pages:
    NumPy's own way reads small pieces through the archive, and computes checksums beside."""
    return {name: array.copy() for name, array in map_arrays(path).items()}


def map_arrays(path: Path) -> Arrays:
    """Return the arrays of a file as it is on disk: read-only memory, whose pages the system shares among all who map
    the file. ValueError where it is no such file."""
    arrays = {}
    with path.open("rb") as file, ZipFile(file) as archive:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for member in archive.infolist():
            lengths = struct.unpack_from("<HH", pages, member.header_offset + NAME_LENGTHS)
            with archive.open(member) as stream:
                if npy.read_magic(stream) != (1, 0):  # others are of arrays with many named fields
                    raise ValueError(f"{member.filename} is of an unknown version")
                shape, in_columns, dtype = npy.read_array_header_1_0(stream)
                begin = member.header_offset + LOCAL_HEADER + sum(lengths) + stream.tell()
            array = np.ndarray(shape[::-1] if in_columns else shape, dtype, pages, begin)
            arrays[member.filename.removesuffix(".npy")] = array.T if in_columns else array
    return arrays
