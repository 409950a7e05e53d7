"""A picture of duplicates: a row for each group, with similarities under the images."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from curate.stages.gallery import ImageLocation, read_thumbnail
from curate.storage.atomic import atomic_write

MAX_ROWS, MAX_IMAGES = 20, 8
_SIZE, _GAP, _MARGIN, _TOP, _CAPTION = 80, 6, 16, 48, 16  # pixels
_TEXT_COLOUR, _CAPTION_COLOUR = (32, 32, 32), (110, 110, 110)


class CaptionedImage(NamedTuple):
    """An image, and what stands under it."""

    location: ImageLocation
    caption: str


def draw_groups(path: Path, title: str, rows: list[tuple[str, list[CaptionedImage]]]) -> None:
    """Write a PNG of rows (name, images). Raises CurateError where an image cannot be read."""
    title_font, font = ImageFont.load_default(18), ImageFont.load_default(12)
    left = 2 * _MARGIN + max(int(font.getlength(name)) for name, _ in rows)
    longest = max(len(images) for _, images in rows)
    width = max(left + longest * (_SIZE + _GAP), int(title_font.getlength(title)) + _MARGIN)
    height = _SIZE + _CAPTION + _GAP
    picture = Image.new("RGB", (width + _MARGIN, _TOP + len(rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 12), title, _TEXT_COLOUR, title_font)
    for row, (name, images) in enumerate(rows):
        y = _TOP + row * height
        draw.text((_MARGIN, y + _SIZE // 2 - 8), name, _CAPTION_COLOUR, font)
        for column, (location, caption) in enumerate(images):
            x = left + column * (_SIZE + _GAP)
            picture.paste(read_thumbnail(location, _SIZE), (x, y))
            draw.text((x, y + _SIZE), caption, _CAPTION_COLOUR, font)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")
