"""Reads the GPU code inside a shared library: which kernels it holds, for which architecture, what each one takes.

Stands for cuobjdump, which not every toolkit has. Sees only code that was not compressed (nvcc --no-compress).
Source: the ELF-64 format; the attributes of .nv.info as `cuobjdump --dump-resource-usage` and `nvdisasm` show them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CUDA_MACHINE = 190  # e_machine of GPU code
FRAME_SIZE, REGISTERS = 0x11, 0x2F  # attributes of .nv.info: (symbol, bytes of stack frame), (symbol, registers)
WITH_SIZE = 4  # format of an attribute whose second half-word is the size of what follows


@dataclass(frozen=True)
class Kernel:
    """name: mangled. architecture: 90 for sm_90. registers per thread; frame: bytes of stack per thread."""

    name: str
    architecture: int
    registers: int
    frame: int

    @property
    def plain_name(self) -> str:
        """The function's own name: the last part of an Itanium-mangled nested name."""
        parts, rest = [], self.name.removeprefix("_ZN")
        while (found := re.match(r"\d+", rest)) is not None:
            size = int(found[0])
            parts.append(rest[found.end() : found.end() + size])
            rest = rest[found.end() + size :]
        return parts[-1] if parts else self.name


def kernels(library: Path) -> list[Kernel]:
    """Every kernel of every architecture in the library."""
    data = library.read_bytes()
    found = []
    start = 0
    while (start := data.find(b"\x7fELF", start + 1)) > 0:
        if struct.unpack_from("<H", data, start + 18)[0] == CUDA_MACHINE:
            found += _kernels(memoryview(data)[start:])
    return found


def _kernels(elf: memoryview) -> Iterator[Kernel]:
    flags = struct.unpack_from("<I", elf, 48)[0]
    sections = _sections(elf)
    attributes = _attributes(elf, dict(sections))
    for name, _ in sections:
        if name.startswith(".text."):
            kernel = name.removeprefix(".text.")
            registers, frame = attributes[kernel, REGISTERS], attributes[kernel, FRAME_SIZE]
            yield Kernel(kernel, flags >> 8 & 0xFFFF, registers, frame)


def _sections(elf: memoryview) -> list[tuple[str, tuple[int, ...]]]:
    """Name and header (name, type, flags, address, offset, size, link, info, alignment, entry size) of each."""
    table, size, count, names = *struct.unpack_from("<Q", elf, 40), *struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + size * index) for index in range(count)]
    strings = headers[names][4]
    return [(_string(elf, strings + header[0]), header) for header in headers]


def _attributes(elf: memoryview, sections: dict[str, tuple[int, ...]]) -> dict[tuple[str, int], int]:
    """What .nv.info says, by symbol and attribute."""
    found: dict[tuple[str, int], int] = {}
    if ".nv.info" not in sections:  # a file without kernels
        return found
    symbols, strings, info = sections[".symtab"], sections[".strtab"], sections[".nv.info"]
    at, end = info[4], info[4] + info[5]
    while at < end:
        kind, attribute, size = struct.unpack_from("<BBH", elf, at)
        at += 4
        if kind != WITH_SIZE:
            continue
        if attribute in (FRAME_SIZE, REGISTERS):
            symbol, value = struct.unpack_from("<II", elf, at)
            name = struct.unpack_from("<I", elf, symbols[4] + symbols[9] * symbol)[0]
            found[_string(elf, strings[4] + name), attribute] = value
        at += size
    return found


def _string(elf: memoryview, at: int) -> str:
    return bytes(elf[at : at + 1024]).split(b"\0", 1)[0].decode()
