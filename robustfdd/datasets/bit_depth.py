"""How many bits a channel an image file has: Pillow reads many that have more than 8 as if they had 8, in silence.

Its mode does not tell: a PNG file of 16 bits in colour comes as ``RGB``, with the lower half of every value cut off. So
the depth is read where the format states it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from robustfdd import files

#: Formats that have 8 bits a channel or fewer, whatever is in them.
_EIGHT_AT_MOST = frozenset(
    {"BMP", "DIB", "GIF", "JPEG", "MPO", "MSP", "PCX", "QOI", "SUN", "TGA", "WEBP", "XBM", "XPM"}
)


def bits_per_channel(image: Image.Image, file: Path) -> int:
    """The bits of the deepest channel of an image, as its file states them; 8 for all formats that have no more.

    Args:
        image: opened by Pillow, and not loaded yet.
        file: what it was opened from.

    Raises:
        ValueError: the format is none whose depth is known, or the values have a sign.
    """
    if image.format in _EIGHT_AT_MOST:
        return 8
    depth = _DEPTHS.get(str(image.format))
    if depth is None:
        allowed = ", ".join(sorted({*_EIGHT_AT_MOST, *_DEPTHS}))
        raise ValueError(f"how many bits a channel has cannot be told in format {image.format}; allowed: {allowed}")
    return depth(image, file)


def _png(_image: Image.Image, file: Path) -> int:
    # Signature (8 bytes), then the chunk IHDR: length, name, width, height (4 each), bits (ISO/IEC 15948, 11.2.2).
    head = _head(file, 26)
    if head[12:16] != b"IHDR":
        raise ValueError("the PNG file does not begin with its header")
    return head[24]


def _tiff(image: Image.Image, _file: Path) -> int:
    # TIFF 6.0: BitsPerSample, 1 by default; SampleFormat, of which 1 is unsigned and 4 is undefined.
    tags = getattr(image, "tag_v2")  # noqa: B009 - of Pillow's class for this format alone
    if set(_numbers(tags.get(339, 1))) - {1, 4}:
        raise ValueError("its values are no unsigned whole numbers")
    return int(max(_numbers(tags.get(258, 1))))


def _ppm(image: Image.Image, _file: Path) -> int:
    # Pillow's decoders of all largest values but 255, and of values in words, are told the largest value.
    told = [number for number in _numbers(image.tile[0].args) if isinstance(number, int)]
    return max(told, default=255).bit_length()


def _sgi(_image: Image.Image, file: Path) -> int:
    return 8 * _head(file, 4)[3]


def _jpeg_2000(_image: Image.Image, file: Path) -> int:
    # The markers SOC and SIZ begin the codestream (ISO/IEC 15444-1, A.5.1); 38 bytes on is the number of components,
    # and then for each of them the bits less one, of which the highest says that there is a sign, and two numbers.
    content = files.read_bytes(file, files.IMAGE)
    start = content.find(b"\xff\x4f\xff\x51") + 40
    n = int.from_bytes(content[start : start + 2], "big")
    depths = content[start + 2 : start + 2 + 3 * n : 3]
    if start < 40 or not depths or max(depths) > 127:
        raise ValueError("its values are no unsigned whole numbers")
    return max(depths) + 1


def _avif(_image: Image.Image, file: Path) -> int:
    # The box av1C: its third byte has bits for "more than 8" and for "12" (AV1 in ISO base media files, 2.3.3).
    boxes = files.read_bytes(file, files.IMAGE).split(b"av1C")[1:]
    if not boxes or any(len(box) < 3 for box in boxes):
        raise ValueError("the AVIF file does not say how many bits it has")
    return max(8 if not box[2] & 0x40 else 12 if box[2] & 0x20 else 10 for box in boxes)


def _head(file: Path, n: int) -> bytes:
    with files.opened(file, files.IMAGE) as stream:
        return stream.read(n)


def _numbers(value: Any) -> tuple[int, ...]:
    """One number or several, as Pillow has them."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


_DEPTHS: dict[str, Callable[[Image.Image, Path], int]] = {
    "AVIF": _avif,
    "JPEG2000": _jpeg_2000,
    "PNG": _png,
    "PPM": _ppm,
    "SGI": _sgi,
    "TIFF": _tiff,
}
