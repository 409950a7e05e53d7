"""Bytes, seconds and other people's texts as people can read them."""

import re


def size(num_bytes: float) -> str:
    """For example 1.5 GiB, 320 MiB."""
    value, unit = num_bytes / (1 << 20), "MiB"
    for larger in ("GiB", "TiB", "PiB"):
        if value >= 1024:
            value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"


def duration(seconds: float) -> str:
    """For example 40 s, 12 min, 3.5 h, 21 days."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "below 1 s"


def printable(text: str, keep: str = "") -> str:
    """A text without control characters, which would steer a terminal, but those to `keep`: they are written as escapes."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda sign: sign[0] if sign[0] in keep else f"\\x{ord(sign[0]):02x}", text)
