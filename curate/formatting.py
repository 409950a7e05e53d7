"""Numbers, names and other people's texts as people read them."""

import re


def format_bytes(num_bytes: float) -> str:
    """For example 1.5 GiB, 320 MiB."""
    value, unit = num_bytes / (1 << 20), "MiB"
    for larger in ("GiB", "TiB", "PiB"):
        if value >= 1024:
            value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"


def format_duration(seconds: float) -> str:
    """For example 40 s, 12 min, 3.5 h, 21 days."""
    for length, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 1.5 * length:
            value = seconds / length
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "below 1 s"


def count_of(count: int, noun: str, plural: str = "") -> str:
    """For example "1 export", "2 exports"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def shorten(text: str, longest: int) -> str:
    """A text of at most so many characters, with … for what is left out."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def printable(text: str, longest: int) -> str:
    """A text of at most so many characters for a picture, � for what cannot be printed."""
    shown = shorten(text, longest)
    return "".join(character if character.isprintable() else "\ufffd" for character in shown)


def escape_control_characters(text: str, allow: str = "") -> str:
    """A text whose control characters, which would steer a terminal, are written as escapes."""

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        return character if character in allow else f"\\x{ord(character):02x}"

    return re.sub(r"[\x00-\x1f\x7f-\x9f]", escape, text)


def is_unicode(text: str) -> bool:
    """Whether a name can be written as UTF-8; names of files may hold any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def natural_sort_key(text: str) -> list[tuple[int, str]]:
    """A sort key under which `part-10` comes after `part-9`; no two texts share a key."""

    def chunk_key(chunk: str) -> tuple[int, str]:
        digits = chunk.lstrip("0")
        return (len(digits), digits) if chunk.isdecimal() else (-1, chunk)

    return [*map(chunk_key, re.split(r"(\d+)", text)), (-1, text)]


def label_of_pattern(pattern: str) -> str:
    """What a pattern of shards, or a catalog, is called in a set's default name.

    The last part of its path without .tar and without the characters that no name may have.
    """
    stem = pattern.rstrip("/").rpartition("/")[2].removesuffix(".tar")
    return re.sub(r"[^A-Za-z0-9@_.,+=-]+", "", stem).strip("-._") or "shards"


def file_safe(spec: str) -> str:
    """The name of an encoder or model without the characters that a file name cannot hold."""
    return spec.replace(":", "-").replace("/", "-")
