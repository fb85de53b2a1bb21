"""Archives from outside: what is allowed arrives whole, everything else is refused in a sentence and leaves nothing behind."""

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from core.data import archives
from core.data.archives import is_archive, unpack_images
from core.data.image_sets import load_image_set
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


def tarred(files, mode="w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def gzipped_tar(files) -> bytes:
    return tarred(files, "w:gz")


PACKERS = pytest.mark.parametrize("pack", [zipped, tarred, gzipped_tar])


@pytest.fixture
def folder(tmp_path):
    """An empty folder in one that nothing else may appear in."""
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
    assert "allowed" in message
    assert len(message) < 500
    return message


# what is allowed


@PACKERS
@pytest.mark.parametrize("top", ["", "my pets/", "./"])
def test_one_folder_a_class(folder, pack, top):
    assert unpack_images(io.BytesIO(pack({top + name: content for name, content in TWO_CLASSES.items()})), folder) == 3
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == ["ant/000000.png", "ant/000001.png", "bee/000002.png"]
    images = load_image_set(folder)
    assert images.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert images.labels.tolist() == [0, 0, 1]


@PACKERS
@pytest.mark.parametrize("top", ["", "mi-fgsm/"])
def test_set_as_generate_writes_it(folder, pack, top):
    images = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(torch.uint8)
    tensors = save({"images": images, "labels": torch.tensor([1, 0])})
    assert unpack_images(io.BytesIO(pack({top + "images.safetensors": tensors, top + "manifest.json": b'{"a": 1}'})), folder) == 2
    back = load_image_set(folder)
    assert torch.equal(back.images, images)
    assert (back.labels.tolist(), back.manifest) == ([1, 0], {"a": 1})


@PACKERS
@pytest.mark.parametrize("top", ["", "a-run/"])
def test_set_as_export_writes_it(folder, pack, top):
    manifest = {"folders": {"bee": 1, "ant": 0}, "images": 3, "optimizer": "adam"}
    files = {"bee/000000.png": picture(1), "ant/000002.png": picture(3), "bee/000001.png": picture(2)}
    packed = {top + name: content for name, content in {**files, "manifest.json": json.dumps(manifest).encode()}.items()}
    assert unpack_images(io.BytesIO(pack(packed)), folder) == 3
    image_set = load_image_set(folder)
    assert image_set.images[:, 0, 0, 0].tolist() == [1, 2, 3]  # the numbers count, not the order in the archive
    assert image_set.labels.tolist() == [1, 1, 0]
    assert image_set.manifest["optimizer"] == "adam"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ant/000000.png": picture(), "ant/manifest.json": b"{}"}, ["'ant/manifest.json'", "beside no folders"]),
        ({"ant/first.png": picture(), "manifest.json": b"{}"}, ["'ant/first.png'", "numbered"]),
        ({"ant/000000.png": picture(), "manifest.json": b"[]"}, ["no JSON object"]),
        ({"ant/000000.png": picture(), "manifest.json": b"{"}, ["cannot be read"]),
        ({"ant/000000.png": picture(), "manifest.json": b"{}", "ant/../../manifest.json": b"{}"}, [".."]),
        ({"000000.png": picture(), "manifest.json": b"{}"}, ["in no folder of a class"]),
    ],
)
def test_exported_sets_that_are_none(folder, files, words):
    with pytest.raises(DataError) as caught:
        unpack_images(io.BytesIO(zipped(files)), folder, "a.zip")
    for word in ["a.zip", *words]:
        assert word in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("JPG", "JPEG"), ("jpeg", "JPEG"), ("bmp", "BMP"), ("webp", "WEBP")])
def test_every_format_keeps_its_bytes(folder, suffix, kind):
    content = picture(77, kind=kind)
    unpack_images(io.BytesIO(zipped({f"ant/a.{suffix}": content})), folder)
    (file,) = folder.rglob("*.*")
    assert file.read_bytes() == content
    assert len(load_image_set(folder)) == 1


def test_path_of_an_archive_on_disk(tmp_path, folder):
    (tmp_path / "a.zip").write_bytes(zipped(TWO_CLASSES))
    assert unpack_images(tmp_path / "a.zip", folder) == 3
    with pytest.raises(DataError, match=r"none\.zip' cannot be read .*: allowed is"):
        unpack_images(tmp_path / "none.zip", folder / "ant")


def test_archive_can_be_named_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzipped_tar(TWO_CLASSES))
    images = load_image_set(tmp_path / "a.tar.gz")
    assert images.labels.tolist() == [0, 0, 1]
    assert images.manifest["source"] == str(tmp_path / "a.tar.gz")
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"b\.zip' begins with b'no archi': allowed is"):
        load_image_set(tmp_path / "b.zip")
    with pytest.raises(DataError, match="does not exist"):
        load_image_set(tmp_path / "none.zip")


@pytest.mark.parametrize("name", ["a.zip", "A.ZIP", "a.tar", "b.tar.gz", "c.tgz"])
def test_names_of_archives(tmp_path, name):
    assert is_archive(tmp_path / name)
    assert not is_archive(tmp_path / f"{name}.png")


@PACKERS
def test_what_systems_add_is_left_out(folder, pack):
    litter = {"__MACOSX/ant/._a.png": b"x", "ant/.DS_Store": b"x", "Thumbs.db": b"x", "ant/._b.png": b"x"}
    assert unpack_images(io.BytesIO(pack({**litter, **TWO_CLASSES})), folder) == 3
    assert len(list(folder.rglob("*.*"))) == 3


def test_folders_of_their_own_in_the_archive_are_fine(folder):
    for_tar = tarfile.TarInfo("ant")
    for_tar.type = tarfile.DIRTYPE
    assert unpack_images(io.BytesIO(tarred({for_tar: b"", **TWO_CLASSES})), folder) == 3


def test_folders_in_a_zip_are_fine(folder):
    assert unpack_images(io.BytesIO(zipped({"pets/": b"", "pets/ant/": b"", "pets/ant/a.png": picture()})), folder) == 1


# names that lead elsewhere

OUTSIDE = ["../evil.png", "ant/../../evil.png", "/tmp/evil.png", "//host/evil.png", "..", "ant/./a.png", "ant//a.png"]


@PACKERS
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_leave_the_folder(folder, pack, name):
    message = refused(pack({**TWO_CLASSES, name: picture()}), folder)
    assert "leads elsewhere" in message or "absolute path" in message


@PACKERS
@pytest.mark.parametrize("name", ["ant\\a.png", "..\\..\\evil.png", "C:/evil.png", "c:evil.png"])
def test_names_of_windows(folder, pack, name):
    assert "one of Windows" in refused(pack({name: picture()}), folder)


@PACKERS
@pytest.mark.parametrize("name", ["ant/a\n.png", "ant/\x1b[2J.png", "ant/\u202egnp.png", "an\x7ft/a.png"])
def test_names_that_cannot_be_shown(folder, pack, name):
    assert "cannot be shown" in refused(pack({name: picture()}), folder)


def test_name_with_nul(folder):
    """zipfile reads it as ant/a.png."""
    content = zipped({"ant/a.pngX.txt": picture()}).replace(b"ant/a.pngX.txt", b"ant/a.png\0.txt")
    assert "cannot be shown" in refused(content, folder)


def test_name_that_is_no_text(folder):
    content = tarred({"ant/aXXX.png": picture()}).replace(b"ant/aXXX.png", b"ant/a\xff\xfe\xfd.png")
    # the header's own checksum, as a packer would write it
    header = bytearray(content[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert "cannot be shown" in refused(bytes(header) + content[512:], folder)


@PACKERS
@pytest.mark.parametrize("name", ["ant/" + "a" * 300 + ".png", "a" * 201 + "/a.png", "ant/" + "ä" * 150 + ".png"])
def test_names_that_are_too_long(folder, pack, name):
    assert "too long" in refused(pack({name: picture()}), folder)


@PACKERS
def test_same_name_twice(folder, pack):
    buffer = pack({"ant/a.png": picture(1), "ant/b.png": picture(2)})
    if pack is gzipped_tar:
        buffer = gzip.compress(gzip.decompress(buffer).replace(b"ant/b.png", b"ant/a.png"))
    if pack is not zipped:
        plain = gzip.decompress(buffer) if pack is gzipped_tar else buffer
        second = bytearray(plain[1024:1536])
        second[:9] = b"ant/a.png"
        second[148:156] = b" " * 8
        second[148:156] = b"%06o\0 " % sum(second)
        plain = plain[:1024] + bytes(second) + plain[1536:]
        buffer = gzip.compress(plain) if pack is gzipped_tar else plain
    else:
        buffer = buffer.replace(b"ant/b.png", b"ant/a.png")
    assert "twice" in refused(buffer, folder)


@PACKERS
@pytest.mark.parametrize("names", [("ant", "Ant"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_some_file_systems_take_for_one(folder, pack, names):
    assert "differ only in case" in refused(pack({f"{name}/a.png": picture() for name in names}), folder)


@PACKERS
@pytest.mark.parametrize("name", [".hidden", "ant.", " ant", "ant "])
def test_names_of_classes_that_some_file_systems_change(folder, pack, name):
    assert "neither begin nor end" in refused(pack({f"{name}/a.png": picture()}), folder)


# members that are no files


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z"]
)
def test_links_and_devices_in_a_tar(folder, kind):
    info = tarfile.TarInfo("ant/link.png")
    info.type, info.linkname = kind, "/etc/passwd"
    # a contiguous file is a file, here an empty one
    reason = "cannot be read as an image" if kind == tarfile.CONTTYPE else "a link, a device"
    assert f"'ant/link.png', which {'is ' if 'link' in reason else ''}{reason}" in refused(tarred({**TWO_CLASSES, info: b""}), folder)


def test_file_behind_a_link_to_a_folder_outside(tmp_path, folder):
    link = tarfile.TarInfo("ant")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    assert "'ant', which is a link" in refused(tarred({link: b"", "ant/a.png": picture()}), folder)
    assert not (tmp_path / "a.png").exists()


def test_sparse_file(folder):
    info = tarfile.TarInfo("ant/a.png")
    info.type = tarfile.GNUTYPE_SPARSE
    assert refused(tarred({info: b""}), folder)


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666])
def test_links_and_devices_in_a_zip(folder, mode):
    info = zipfile.ZipInfo("ant/link.png")
    info.create_system, info.external_attr = 3, mode << 16
    assert "link or a device" in refused(zipped({**TWO_CLASSES, info: b"/etc/passwd"}), folder)


# bombs


def test_archive_that_is_too_large(folder, monkeypatch):
    content = zipped(TWO_CLASSES)
    monkeypatch.setattr(archives, "ARCHIVE_BYTES", len(content) - 1)
    assert f"has {len(content):,} bytes: allowed is at most {len(content) - 1:,}" in refused(content, folder)


@PACKERS
def test_too_many_members(folder, monkeypatch, pack):
    monkeypatch.setattr(archives, "MEMBERS", 2)
    assert "more than 2 files and folders" in refused(pack(TWO_CLASSES), folder)


@PACKERS
def test_sizes_that_add_up_to_too_much(folder, monkeypatch, pack):
    monkeypatch.setattr(archives, "UNPACKED_BYTES", 2 * len(picture()))
    message = refused(pack(TWO_CLASSES), folder)
    assert "unpacks" in message


def test_file_that_shrinks_like_none_should(folder):
    assert "packed to less than 1 / 200" in refused(zipped({**TWO_CLASSES, "bee/zeros.bmp": bytes(10 * 2**20)}), folder)


def test_tar_that_shrinks_like_none_should(folder):
    assert "200 times" in refused(gzipped_tar({"ant/zeros.bmp": bytes(10 * 2**20)}), folder)


def test_zeros_without_end_behind_the_files(folder, monkeypatch):
    """The headers are small, so only what comes out of the gzip can tell."""
    monkeypatch.setattr(archives, "UNPACKED_BYTES", 2**20)
    monkeypatch.setattr(archives, "MEMBERS", 10)
    info = tarfile.TarInfo("ant/a.png")
    info.size = 2**20
    content = gzip.compress(info.tobuf() + bytes(2**20 - 512) + os.urandom(1000) + bytes(8 * 2**20))
    assert refused(content, folder)


def test_long_name_of_many_megabytes(folder):
    """tarfile reads it in one piece, however long it says that it is."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 100 * 2**20
    content = gzip.compress(info.tobuf() + bytes(100 * 2**20), compresslevel=1)
    assert "index or header of 104,857,600 bytes" in refused(content, folder)


def test_long_names_one_behind_the_other(folder):
    """tarfile reads them by recursion."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    assert "cannot be read" in refused((info.tobuf() + b"a\0" + bytes(510)) * 5000, folder)


def test_directory_of_a_zip_of_many_megabytes(folder, monkeypatch):
    monkeypatch.setattr(archives, "INDEX_BYTES", 100_000)
    content = zipped({f"ant/{i}.png": b"" for i in range(2000)})
    assert "index or header of" in refused(content, folder)


def test_zip_that_says_that_a_file_is_smaller(folder):
    content = bytearray(zipped({"ant/a.bmp": picture(kind="BMP", size=(32, 32))}))
    start = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, start + 24, 100)
    assert refused(bytes(content), folder)


def test_zip_that_says_that_a_file_is_larger(folder):
    content = bytearray(zipped({"ant/a.bmp": picture(kind="BMP", size=(32, 32))}))
    start = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, start + 24, 20_000)
    assert "is not the 20,000 bytes" in refused(bytes(content), folder)


def test_file_that_is_larger_than_an_image(folder, monkeypatch):
    monkeypatch.setattr(archives, "IMAGE_BYTES", 1000)
    assert "allowed is at most 1,000" in refused(zipped({"ant/a.png": os.urandom(1001)}), folder)


def png_that_says(width, height) -> bytes:
    """A PNG whose header promises more than is in it."""
    content = bytearray(picture())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize("size", [(4097, 4096), (100_000, 100_000), (2**31 - 1, 1)])
def test_image_of_too_many_pixels_is_not_decoded(folder, size):
    message = refused(zipped({"ant/a.png": png_that_says(*size)}), folder)
    assert "million in an image" in message or "cannot be read as an image" in message


def test_image_at_the_limit_is_decoded(folder):
    assert unpack_images(io.BytesIO(zipped({"ant/a.png": picture(size=(4096, 4096), mode="L")})), folder) == 1


def test_pixels_of_all_images(folder, monkeypatch):
    """Black images are small files and large tensors."""
    monkeypatch.setattr(archives, "UNPACKED_BYTES", 3 * 200 * 200 * 2)
    files = {f"ant/{i}.png": picture(size=(200, 200)) for i in range(3)}
    assert "of pixels" in refused(zipped(files), folder)


# what is damaged or of another kind


@pytest.mark.parametrize("content", [b"", b"x", b"GIF89a" + bytes(600), b"7z\xbc\xaf\x27\x1c" + bytes(600), b"\xfd7zXZ\x00" + bytes(600)])
def test_other_files(folder, content):
    assert "begins with" in refused(content, folder)


@PACKERS
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_cut_off(folder, pack, part):
    content = pack({name: os.urandom(3000) for name in TWO_CLASSES})
    if pack is tarred:
        content = content[: 3 * (512 + 3072)]  # without what tar adds to fill its last block
    assert refused(content[: int(part * len(content))], folder)


@PACKERS
def test_damaged(folder, pack):
    """A flipped byte anywhere is refused, or is where it does not matter; nothing else is raised."""
    content = pack(TWO_CLASSES)
    refusals, left = [], []
    for place in range(0, min(len(content), 3000), 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        try:
            unpack_images(io.BytesIO(bytes(damaged)), folder, "a")
        except DataError as error:
            refusals.append(str(error))
            left += os.listdir(folder)
        for path in list(folder.iterdir()):
            archives.remove(path)
    assert len(refusals) > 10
    assert all(message.isprintable() for message in refusals)
    assert left == []


def test_encrypted(folder):
    content = bytearray(zipped(TWO_CLASSES))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refused(bytes(content), folder)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_take_memory(folder, compression):
    assert "packed by method" in refused(zipped(TWO_CLASSES, compression), folder)


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz"])
def test_tars_that_take_memory(folder, mode):
    assert "begins with" in refused(tarred(TWO_CLASSES, mode), folder)


@PACKERS
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"Thumbs.db": b"x"}, "no images"),
        ({"a.png": picture()}, "in no folder of a class"),
        ({"a/b/c/d.png": picture()}, "in no folder of a class"),
        ({"top/ant/a.png": picture(), "other/bee/b.png": picture()}, "in no folder of a class"),
        ({"ant/a.png": picture(), "top/bee/b.png": picture()}, "in no folder of a class"),
        ({"ant/notes.txt": b"text"}, "no image"),
        ({"ant/more.zip": zipped(TWO_CLASSES)}, "no image"),
        ({"ant/a.svg": b"<svg onload=alert(1)>"}, "no image"),
        ({"ant/a.png": b"no image at all"}, "cannot be read as an image"),
        ({"ant/a.png": picture()[:40]}, "cannot be read as an image"),
        ({"ant/a.png": picture(kind="GIF")}, "cannot be read as an image"),
        ({"ant/a.png": picture(), "ant/b.png": picture(size=(9, 8))}, "8 x 8 and of 9 x 8"),
    ],
)
def test_contents_that_are_none(folder, pack, files, words):
    assert words in refused(pack(files), folder)


def test_class_without_images(folder):
    """It would be lost, and with it the order of those behind it."""
    assert "no images in 'cow'" in refused(zipped({"cow/": b"", **TWO_CLASSES}), folder)


def some_set(**changes) -> dict[str, bytes]:
    tensors = {"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "labels": torch.zeros(2, dtype=torch.long), **changes}
    return {"images.safetensors": save({k: v for k, v in tensors.items() if v is not None}), "manifest.json": b"{}"}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({**some_set(), "more.txt": b"x"}, "nothing else"),
        ({"images.safetensors": b"x"}, "nothing else"),
        ({f"a/b/{name}": content for name, content in some_set().items()}, "nothing else"),
        ({**some_set(), "images.safetensors": b"garbage"}, "cannot be read as a set"),
        ({**some_set(), "images.safetensors": b"\xff" * 100}, "cannot be read as a set"),
        ({**some_set(), "manifest.json": b"[]"}, "no JSON object"),
        ({**some_set(), "manifest.json": b"\xff"}, "cannot be read as a set"),
        ({**some_set(), "manifest.json": b"[" * 100_000}, "cannot be read as a set"),
        (some_set(images=torch.zeros(2, 3, 8, 8)), "F32"),
        (some_set(images=torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), "(2, 1, 8, 8)"),
        (some_set(images=torch.zeros(0, 3, 8, 8, dtype=torch.uint8), labels=torch.zeros(0, dtype=torch.long)), "(0, 3, 8, 8)"),
        (some_set(labels=torch.zeros(3, dtype=torch.long)), "has tensors"),
        (some_set(labels=None), "has tensors"),
        (some_set(more=torch.zeros(1)), "has tensors"),
    ],
)
def test_sets_that_are_none(folder, files, words):
    assert words in refused(zipped(files, zipfile.ZIP_STORED), folder)


def test_manifest_that_is_too_large(folder):
    files = {**some_set(), "manifest.json": json.dumps({"a": os.urandom(600_000).hex()}).encode()}
    assert "allowed is at most 1,048,576" in refused(zipped(files), folder)


def test_full_disk_is_no_fault_of_the_archive(folder, monkeypatch):
    def fails(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fails)
    with pytest.raises(OSError, match="No space left"):
        unpack_images(io.BytesIO(zipped(TWO_CLASSES)), folder)
    assert os.listdir(folder) == []
