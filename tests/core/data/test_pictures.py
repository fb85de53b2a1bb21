"""Images of every mode become 8-bit RGB with the right values."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, features

from core.data.pictures import FORMATS, LARGEST, SUFFIXES, has_unknown_white, in_mode, open_picture, read_picture
from core.errors import DataError

GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLORS = np.stack([GRAY, GRAY.T, 255 - GRAY], axis=2)


def stored(image: Image.Image, kind: str) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return open_picture(io.BytesIO(buffer.getvalue()))


def is_gray(image: Image.Image) -> bool:
    return image.mode == "RGB" and np.array_equal(np.asarray(image), np.stack([GRAY] * 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
@pytest.mark.parametrize("factor", [257, 256])
def test_sixteen_bits_give_the_eight_bits_they_were_widened_from(kind, factor):
    """Pillow's own conversion clips them to white."""
    image = stored(Image.fromarray(GRAY.astype(np.uint16) * factor), kind)
    assert not has_unknown_white(image)
    assert is_gray(in_mode(image))


def test_dark_image_of_sixteen_bits_stays_dark():
    dark = np.full((4, 4), 255, dtype=np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        assert np.asarray(in_mode(stored(Image.fromarray(dark), kind))).max() == 0


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_either_byte_order_of_sixteen_bits(mode):
    order = ">u2" if mode.endswith("B") else "<u2"
    image = Image.frombytes(mode, (16, 16), (GRAY.astype(np.uint16) * 257).astype(order).tobytes())
    assert is_gray(in_mode(image))


@pytest.mark.parametrize("factor", [1, 256, 257, 1 << 23])
def test_whole_numbers_of_32_bits_are_scaled_by_their_range(factor):
    image = stored(Image.fromarray(GRAY.astype(np.int32) * factor), "TIFF")
    assert image.mode == "I"
    assert has_unknown_white(image)
    assert is_gray(in_mode(image))


def tiff(values: np.ndarray, photometric: int) -> Image.Image:
    """An opened TIFF file of grey values as the standard describes it. photometric: 1, or 0 where the smallest value is white."""
    height, width = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = [(256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, photometric), (273, 0), (277, 1), (278, height)]
    tags += [(279, values.nbytes), (339, kind)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values.astype(values.dtype.newbyteorder("<")).tobytes()
    return open_picture(io.BytesIO(content))


@pytest.mark.parametrize(
    ("kind", "white", "photometric"),
    [("u1", 255, 1), ("u2", 65_535, 1), ("i4", 2**31 - 1, 1), ("u4", 2**32 - 1, 1), ("i2", 32_767, 1), ("f4", 1, 1)]
    + [("u1", 255, 0), ("u2", 65_535, 0), ("f4", 1, 0)],  # Pillow reads no others
)
def test_tiff_of_every_type_and_with_white_at_zero(kind, white, photometric):
    scaled = GRAY.astype(np.float64) / 255 * white
    values = (white - scaled if photometric == 0 else scaled).round(0 if white > 1 else 9).astype(kind)
    given = np.asarray(in_mode(tiff(values, photometric)), dtype=int)
    assert abs(given - np.stack([GRAY] * 3, axis=2)).max() <= 1
    assert (given.min(), given.max()) == (0, 255)


def test_largest_value_of_sixteen_bits_is_kept():
    twelve = GRAY.astype(np.uint16) * 16
    assert in_mode(stored(Image.fromarray(twelve), "PNG"), "L").info[LARGEST] == 4080
    assert in_mode(stored(Image.fromarray(twelve), "TIFF")).info[LARGEST] == 4080
    assert LARGEST not in in_mode(stored(Image.fromarray(GRAY), "PNG")).info


@pytest.mark.parametrize("factor", [1 / 255, 1, 256, 257])
def test_floating_point_numbers_are_scaled_by_their_range(factor):
    image = stored(Image.fromarray(GRAY.astype(np.float32) * np.float32(factor)), "TIFF")
    assert image.mode == "F"
    assert has_unknown_white(image)
    assert is_gray(in_mode(image))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([[-1.5, 2.0]], dtype=np.float32), "must be 0 to 65,535, got -1.5 to 2"),
        (np.array([[0.5, np.nan]], dtype=np.float32), "must be 0 to 65,535, got nan to nan"),
        (np.array([[0, 1e6]], dtype=np.float32), "must be 0 to 65,535, got 0 to 1e\\+06"),
        (np.array([[-1, 5]], dtype=np.int32), "must be 0 to 2,147,483,647, got -1 to 5"),
    ],
)
def test_values_without_a_scale_are_refused(tmp_path, values, found):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=f"a.tif: pixel values {found}"):
        read_picture(str(tmp_path / "a.tif"))


def test_other_modes():
    rgb = Image.fromarray(COLORS)
    transparent = rgb.copy()
    transparent.putalpha(7)
    palette = rgb.quantize(256)
    for image in (rgb, transparent, stored(transparent, "PNG"), stored(rgb.convert("CMYK"), "TIFF")):
        assert np.array_equal(np.asarray(in_mode(image)), COLORS)
    assert np.array_equal(np.asarray(in_mode(stored(palette, "PNG"))), np.asarray(palette.convert("RGB")))
    gray = Image.fromarray(GRAY)
    faint = gray.copy()
    faint.putalpha(7)
    for image in (gray, faint, stored(faint, "PNG"), stored(gray, "GIF")):
        assert is_gray(in_mode(image))
    bits = stored(gray.point(lambda value: 255 * (value > 99), mode="1"), "PNG")
    assert bits.mode == "1"
    assert np.array_equal(np.asarray(in_mode(bits))[..., 2], 255 * (GRAY > 99))
    for mode, straight in (("La", "LA"), ("RGBa", "RGBA")):
        multiplied = Image.fromarray(COLORS).convert(straight).convert(mode)  # opaque
        assert np.array_equal(np.asarray(in_mode(multiplied)), np.asarray(Image.fromarray(COLORS).convert(straight).convert("RGB")))


def test_color_of_sixteen_bits_has_its_upper_bytes():
    """A PNG of three channels with 16 bits each, written by hand because Pillow cannot."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.tobytes() for row in (COLORS.astype(np.uint16) * 257).astype(">u2"))
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(np.asarray(in_mode(open_picture(io.BytesIO(png)))), COLORS)


def test_formats_that_pillow_reads_and_no_programs(tmp_path):
    assert {".jfif", ".gif", ".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"} <= set(SUFFIXES)
    assert (".avif" in SUFFIXES) == features.check("avif")
    assert "EPS" not in FORMATS  # read by Ghostscript
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png must be an image"):
        read_picture(str(tmp_path / "a.png"))
