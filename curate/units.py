"""Bytes and seconds as people read them."""


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
