"""What macOS tells of the machine by sysctlbyname(3), where Linux has files."""

import ctypes
import sys


def raw(name: str) -> bytes:
    """The value of a name; b"" where there is no such name, or no such call, as on Linux."""
    if sys.platform != "darwin":
        return b""
    call = ctypes.CDLL(None).sysctlbyname
    size = ctypes.c_size_t(256)
    value = ctypes.create_string_buffer(size.value)
    failed = call(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0))
    return b"" if failed else value.raw[: size.value]


def number(name: str) -> int | None:
    """A whole number, of 4 or 8 bytes."""
    return int.from_bytes(found, sys.byteorder) if (found := raw(name)) else None


def text(name: str) -> str:
    """A text; "" where there is none."""
    return raw(name).rstrip(b"\0").decode(errors="replace").strip()
