"""Untrusted zip files: hostile names, links, and bombs are refused and leave no files."""

import io
import os
import struct
import zipfile
import zlib

import pytest
from PIL import Image

from core.data import archives, zip_files
from core.data.archives import unpack_images
from core.errors import DataError


def picture(value=0, size=(8, 8), kind="PNG", mode="RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(buffer, format=kind)
    return buffer.getvalue()


TWO_CLASSES = {"ant/a.png": picture(10), "ant/b.png": picture(20), "bee/c.png": picture(30)}


def zipped(files, compression=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name) if isinstance(name, str) else name, content, compression)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """An empty folder, alone in its parent, where no other file may appear."""
    target = tmp_path / "around" / "images"
    target.mkdir(parents=True)
    return target


def refused(content, folder, name="own images.zip") -> str:
    with pytest.raises(DataError) as caught:
        unpack_images(io.BytesIO(content), folder, name)
    assert os.listdir(folder) == []
    assert os.listdir(folder.parent) == ["images"]
    message = str(caught.value)
    assert message.isprintable()
    assert name in message
    assert "must" in message
    assert len(message) < 500
    return message


# hostile names

OUTSIDE = ["../evil.png", "ant/../../evil.png", "/tmp/evil.png", "//host/evil.png", "..", "ant/./a.png", "ant//a.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_leave_the_folder_are_refused(folder, name):
    message = refused(zipped({**TWO_CLASSES, name: picture()}), folder)
    assert "leads elsewhere" in message or "absolute or Windows path" in message


@pytest.mark.parametrize("name", ["ant\\a.png", "..\\..\\evil.png", "C:/evil.png", "c:evil.png"])
def test_windows_paths_are_refused(folder, name):
    assert "absolute or Windows path" in refused(zipped({name: picture()}), folder)


@pytest.mark.parametrize("name", ["ant/a\n.png", "ant/\x1b[2J.png", "ant/\u202egnp.png", "an\x7ft/a.png"])
def test_non_printable_names_are_refused(folder, name):
    assert "non-printable" in refused(zipped({name: picture()}), folder)


def test_name_with_nul_is_refused(folder):
    """zipfile cuts the name at NUL and reads ant/a.png."""
    content = zipped({"ant/a.pngX.txt": picture()}).replace(b"ant/a.pngX.txt", b"ant/a.png\0.txt")
    assert "non-printable" in refused(content, folder)


@pytest.mark.parametrize("name", ["ant/" + "a" * 300 + ".png", "a" * 201 + "/a.png", "ant/" + "ä" * 150 + ".png"])
def test_names_that_are_too_long_are_refused(folder, name):
    assert "too long" in refused(zipped({name: picture()}), folder)


def test_duplicate_name_is_refused(folder):
    buffer = zipped({"ant/a.png": picture(1), "ant/b.png": picture(2)}).replace(b"ant/b.png", b"ant/a.png")
    assert "twice" in refused(buffer, folder)


@pytest.mark.parametrize("names", [("ant", "Ant"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_coincide_on_some_file_systems_are_refused(folder, names):
    assert "must not differ only in case" in refused(zipped({f"{name}/a.png": picture() for name in names}), folder)


# members that are not files


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666])
def test_links_and_devices_are_refused(folder, mode):
    info = zipfile.ZipInfo("ant/link.png")
    info.create_system, info.external_attr = 3, mode << 16
    assert "a link or a device" in refused(zipped({**TWO_CLASSES, info: b"/etc/passwd"}), folder)


# bombs


def test_archive_that_is_too_large_is_refused(folder, monkeypatch):
    content = zipped(TWO_CLASSES)
    monkeypatch.setattr(archives, "ARCHIVE_BYTES", len(content) - 1)
    assert f"must be at most {len(content) - 1:,} bytes, got {len(content):,}" in refused(content, folder)


def test_too_many_members_are_refused(folder, monkeypatch):
    monkeypatch.setattr(zip_files, "MEMBERS", 2)
    assert "must be at most 2, got more" in refused(zipped(TWO_CLASSES), folder)


def test_total_size_that_is_too_large_is_refused(folder, monkeypatch):
    monkeypatch.setattr(archives, "UNPACKED_BYTES", 2 * len(picture()))
    message = refused(zipped(TWO_CLASSES), folder)
    assert "unpacked size must be at most" in message


def test_compression_ratio_that_is_too_high_is_refused(folder):
    assert "ratio must be at most 200" in refused(zipped({**TWO_CLASSES, "bee/zeros.bmp": bytes(10 * 2**20)}), folder)


def test_zip_directory_that_is_too_large_is_refused(folder, monkeypatch):
    monkeypatch.setattr(zip_files, "INDEX_BYTES", 100_000)
    content = zipped({f"ant/{i}.png": b"" for i in range(2000)})
    assert "directory of the zip file must have at most" in refused(content, folder)


def test_declared_size_that_is_too_small_is_refused(folder):
    content = bytearray(zipped({"ant/a.bmp": picture(kind="BMP", size=(32, 32))}))
    start = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, start + 24, 100)
    assert refused(bytes(content), folder)


def test_declared_size_that_is_too_large_is_refused(folder):
    content = bytearray(zipped({"ant/a.bmp": picture(kind="BMP", size=(32, 32))}))
    start = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, start + 24, 20_000)
    assert "must have its declared size of 20,000 bytes" in refused(bytes(content), folder)


def test_file_that_is_too_large_for_an_image_is_refused(folder, monkeypatch):
    monkeypatch.setattr(archives, "IMAGE_BYTES", 1000)
    assert "must be at most 1,000 bytes" in refused(zipped({"ant/a.png": os.urandom(1001)}), folder)


def png_that_says(width, height) -> bytes:
    """A PNG whose header claims more pixels than it has."""
    content = bytearray(picture())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize("size", [(4097, 4096), (100_000, 100_000), (2**31 - 1, 1)])
def test_image_with_too_many_pixels_is_refused(folder, size):
    message = refused(zipped({"ant/a.png": png_that_says(*size)}), folder)
    assert "million pixels" in message or "must be an image" in message


def test_image_at_the_limit_is_decoded(folder):
    assert unpack_images(io.BytesIO(zipped({"ant/a.png": picture(size=(4096, 4096), mode="L")})), folder) == 1


def test_too_many_pixels_in_total_are_refused(folder, monkeypatch):
    """Black images are small files but large tensors."""
    monkeypatch.setattr(archives, "UNPACKED_BYTES", 3 * 200 * 200 * 2)
    files = {f"ant/{i}.png": picture(size=(200, 200)) for i in range(3)}
    assert "MB of pixels" in refused(zipped(files), folder)
