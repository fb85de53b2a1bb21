"""Image files of the user: which formats are read, and how the pixels of any mode become 8 bits in the channels of a network.

Only these formats are opened, whatever the name of a file: Pillow has others that start programs or contain no picture.
"""

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from core.channels import MODES
from core.errors import DataError
from core.files import check_regular

PIXELS = 50_000_000  # of an image, which is then resized: four bytes each while it is decoded
_NAMES = ("PNG", "JPEG", "JPEG2000", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "PPM", "TGA", "PCX", "QOI", "SGI", "ICO")
Image.init()
FORMATS = tuple(name for name in _NAMES if name in Image.OPEN)
# other formats of pictures, in which files of this name may be
_UNREAD = (".heic", ".heif", ".jxl", ".svg", ".psd", ".exr", ".dcm", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".npy")
SUFFIXES = tuple(suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))  # JPEG of some cameras
_SIXTEEN_BITS = 65_535
LARGEST = "largest value of 16 bits"  # key of an image's info, after it became one of 8 bits
# values that mean white in files of whole numbers, by the last one that the type has
_WHOLE = {2**31 - 1: (255, _SIXTEEN_BITS, 2**31 - 1), 2**32 - 1: (255, _SIXTEEN_BITS, 2**32 - 1), 2**15 - 1: (255, 2**15 - 1)}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_FRACTIONS = (1, 255, _SIXTEEN_BITS)  # and in those of floating-point numbers


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(SUFFIXES)


def is_unread_picture(name: str) -> bool:
    """Whether a file of this name has a picture in a format that is not read."""
    return name.lower().endswith(_UNREAD)


def open_picture(source: str | Path | IO[bytes]) -> Image.Image:
    """The header of an image in one of FORMATS. Raises what Pillow does for other files, and OSError for a pipe or another device."""
    if not hasattr(source, "read"):
        check_regular(source)  # reading a pipe would block forever
    return Image.open(source, formats=FORMATS)


def read_picture(path: str, mode: str | None = "RGB", content: IO[bytes] | None = None) -> Image.Image:
    """The image in a file, 8 bits, in a mode of core.channels. Raises DataError, naming the file, if it cannot be read or is too large.

    mode: None is that of the image if it is one of these, else RGB. content: of the file, if it is inside another one.
    """
    try:
        with open_picture(content or path) as image:
            size = image.size
            if size[0] * size[1] <= PIXELS:
                return in_mode(image, mode or (image.mode if image.mode in MODES.values() else "RGB"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and others
        raise unreadable(path, error) from error
    raise DataError(f"{path} must have at most {PIXELS // 1_000_000} million pixels, got {size[0]} x {size[1]}")


def unreadable(path: str, error: Exception) -> DataError:
    """The error for a file that is no image, or is damaged. error: what was raised when it was read."""
    reason = getattr(error, "strerror", None)
    return DataError(
        f"{path} must be an image in a format that Pillow supports, but cannot be read" + (f" ({reason})" if reason else " as one")
    )


def in_mode(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """An opened image in 8 bits and a mode of core.channels.

    Pillow clips values above 255, so images of 16 and 32 bits are scaled here: those of 16 bits to their upper byte, which recovers 8-bit
    values however they were widened. A file of 32 bits does not tell what white is: it is the smallest of 255, 65,535 and the largest
    whole number, or of 1, 255 and 65,535 for floating-point numbers, that no pixel exceeds. A mode without transparency
    drops it, as torchvision does. The info of an image of 16 bits has its largest value under LARGEST.
    Raises DataError for negative values and others that no such file has.
    """
    if image.mode.startswith("I;16"):
        return _from_16_bits(_upright(np.asarray(image), _SIXTEEN_BITS, image), mode)
    if image.mode == "I":
        values = np.asarray(image)
        # these formats have no 32 bits: Pillow uses the mode for 16
        if image.format in ("PNG", "PPM"):
            return _from_16_bits(values, mode)
        last = _last_value(image)
        values = values.view(np.uint32) if last == 2**32 - 1 else values
        white = _white(values, _WHOLE[last])
        return _gray(_upright(values, white, image) // ((white + 1) // 256), mode)
    if image.mode == "F":
        values = np.asarray(image)
        white = _white(values, _FRACTIONS)
        values = _upright(values, white, image)
        return _gray(values // 256 if white == _SIXTEEN_BITS else np.rint(values * (255 / white)), mode)
    # Pillow does not convert colors that are multiplied by their transparency
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    return (image.convert(straight) if straight else image).convert(mode)


def _last_value(image: Image.Image) -> int:
    """The largest value that the whole numbers of a file can have; Pillow makes all of them signed ones of 32 bits."""
    tags = getattr(image, "tag_v2", {})
    if not tags:
        return 2**31 - 1
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    return 2**15 - 1 if tags.get(_BITS, (32,))[0] == 16 else 2**31 - 1 if signed else 2**32 - 1


def _upright(values: np.ndarray, white: int, image: Image.Image) -> np.ndarray:
    """Values of which the largest are white. TIFF also has the reverse, as radiographs have it, which Pillow resolves for 8 bits alone."""
    return white - values if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0 else values


def _from_16_bits(values: np.ndarray, mode: str) -> Image.Image:
    image = _gray(values >> 8, mode)
    image.info[LARGEST] = int(values.max())
    return image


def has_unknown_white(image: Image.Image) -> bool:
    """Whether `in_mode` has to tell from the values what white is."""
    return image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM"))


def _white(values: np.ndarray, choices: tuple[int, ...]) -> int:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= choices[-1]):  # also for NaN
        raise DataError(f"pixel values must be 0 to {choices[-1]:,}, got {low:g} to {high:g}")
    return next(white for white in choices if high <= white)


def _gray(values: np.ndarray, mode: str) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert(mode)
