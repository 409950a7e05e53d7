"""Labels and captions as text, in whatever coding editors and exporters have left them."""

import codecs
import math
import re
import unicodedata
from typing import Any

# UTF-32 first: its little-endian mark begins as that of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LARGEST_WHOLE = 2.0**53  # from here on, floating point skips whole numbers
_MAX_REPLACED = 0.34  # share of a text's characters that may be unreadable
_NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.ASCII)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def decode_text(data: bytes, errors: str = "strict") -> str:
    """UTF-8, or UTF-16 with or without its mark; without marks and padding by blanks or NULs.

    UTF-16 without a mark is known by a NUL in every other byte. Raises UnicodeDecodeError, a
    ValueError.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None:
        unpadded = data.rstrip(b"\0")
        num_even, num_odd = unpadded[::2].count(0), unpadded[1::2].count(0)
        if not num_even + num_odd:
            data, encoding = unpadded, "utf-8"
        elif not num_even * num_odd:
            data, encoding = data[: len(data) // 2 * 2], "utf-16-be" if num_even else "utf-16-le"
        else:
            raise UnicodeDecodeError("utf-8", data, 0, 1, "NULs as no text has them")
    return data.decode(encoding, errors).strip("\0\ufeff \t\r\n\f\v").strip()


def decode_caption(data: bytes) -> str:
    """A caption, with a mark where a byte could not be read. ValueError where too many could."""
    text = decode_text(data, "replace")
    if text.count(REPLACEMENT) > _MAX_REPLACED * len(text):
        raise ValueError("it is neither UTF-8 nor UTF-16")
    return text


def spell_value(value: Any) -> str | None:
    """A value of JSON as a label; equal numbers have one spelling, and NaN is no label.

    Nested values are left to the caller.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        is_whole = value.is_integer() and abs(value) < _LARGEST_WHOLE
        return str(int(value)) if is_whole else repr(value)
    return str(value).strip()


def likeness(label: str) -> str:
    """The same for labels that people would take for one: by case, blanks, zeros and letters.

    1, 1.0 and 01 are alike, as Cat, cat and "cat ".
    """
    text = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    return repr(float(text)) if _NUMBER.match(text) else text
