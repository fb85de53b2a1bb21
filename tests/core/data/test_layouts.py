"""Folders of images: layouts, order, and refusals."""

import os

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from core.data.layouts import list_of, open_image_folder, open_image_list, part_of
from core.errors import DataError


def image(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(path)


def refused(call) -> str:
    with pytest.raises(DataError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert "must" in message
    return message


def test_same_files_in_the_same_order_as_torchvision(tmp_path):
    for name in ("b/2.png", "b/10.PNG", "b/1.jpeg", "a/z/1.png", "a/z.png", "a/b/c/1.bmp", "a/b/1.png", "c d/ü.webp", "c d/x.tif"):
        image(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "loose.png").write_bytes(b"beside the folders")
    mine, theirs = open_image_folder(tmp_path), ImageFolder(str(tmp_path))
    assert mine.classes == theirs.classes
    assert list(zip(mine.paths, mine.targets)) == theirs.samples
    assert len(mine) == 9
    assert [label for _, label in mine] == theirs.targets


def test_hidden_files_and_folders_are_skipped(tmp_path):
    for name in ("a/1.png", "a/._1.png", "a/.hidden/2.png", ".cache/3.png", "__MACOSX/4.png", "a/__MACOSX/5.png"):
        image(tmp_path / name)
    files = open_image_folder(tmp_path)
    assert (files.classes, files.paths) == (["a"], [str(tmp_path / "a" / "1.png")])


def test_links_are_followed(tmp_path):
    image(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "one.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    files = open_image_folder(tmp_path / "set")
    assert files.targets == [0, 1]
    assert [picture.size for picture, _ in files] == [(4, 4), (4, 4)]


@pytest.mark.parametrize(("link", "target"), [("a/again", "a"), ("a/b/up", "a"), ("a/up", "."), ("c", ".")])
def test_circular_link_is_refused(tmp_path, link, target):
    image(tmp_path / "a" / "b" / "1.png")
    (tmp_path / link).symlink_to(tmp_path / target)
    assert f"{link} does" in refused(lambda: open_image_folder(tmp_path))


@pytest.mark.parametrize("kind", ["broken", "itself", "pipe"])
def test_broken_link_or_pipe_with_an_image_suffix_is_refused(tmp_path, kind):
    image(tmp_path / "a" / "1.png")
    path = tmp_path / "a" / "2.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "nowhere.png" if kind == "broken" else path)
    assert "2.png must be a file or a link to one" in refused(lambda: open_image_folder(tmp_path))


def test_folder_may_have_an_image_suffix(tmp_path):
    image(tmp_path / "a" / "b.png" / "1.png")
    assert len(open_image_folder(tmp_path)) == 1


def test_class_without_images_and_folder_without_classes_are_refused(tmp_path):
    assert "got no folders" in refused(lambda: open_image_folder(tmp_path))
    image(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    assert "got none in b" in refused(lambda: open_image_folder(tmp_path))


def test_root_of_the_file_system_is_refused(tmp_path):
    (tmp_path / "root").symlink_to("/")
    for folder in (tmp_path / "root", tmp_path.root):
        assert "the root of the file system" in refused(lambda folder=folder: open_image_folder(type(tmp_path)(folder)))


def test_part_of_a_folder_that_contains_only_parts(tmp_path):
    assert part_of(tmp_path / "nowhere", "val") == tmp_path / "nowhere"
    for name in ("train", "val", ".git"):
        (tmp_path / name).mkdir()
    assert part_of(tmp_path, "val") == tmp_path / "val"
    assert part_of(tmp_path, "train") == tmp_path / "train"
    (tmp_path / "zebra").mkdir()
    assert part_of(tmp_path, "val") == tmp_path


def test_list_is_used_for_images_without_folders(tmp_path):
    folder = tmp_path / "val"
    image(folder / "1.png")
    assert "got images without either" in refused(lambda: list_of(folder))
    (tmp_path / "val.txt").write_text("1.png 0\n", encoding="utf-8")
    assert list_of(folder) == tmp_path / "val.txt"
    (folder / "val.txt").write_text("1.png 0\n", encoding="utf-8")
    assert list_of(folder) == folder / "val.txt"
    image(folder / "a" / "1.png")
    assert list_of(folder) is None


def test_list_gives_the_class_of_each_image(tmp_path):
    for name in ("1.png", "2.JPEG", "3.png"):
        image(tmp_path / name)
    labels = tmp_path / "val.txt"
    labels.write_text("3.png great white shark\n./2.JPEG tench\n/etc/passwd tench\n../1.png tench\n", encoding="utf-8")
    files = open_image_list(tmp_path, labels)
    assert files.classes == ["great white shark", "tench"]
    assert (files.paths, files.targets) == ([str(tmp_path / name) for name in ("1.png", "2.JPEG", "3.png")], [1, 1, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1.png 0\n2.png 1\n1.png 1\n", "got two for '1.png'"),
        ("1.png 0\n", "got none for '2.png'"),
        ("1.png 0\n2.png\n", "a space, and a class, got '2.png'"),
        # ImageNet's ground truth file: one number per line, numbered in another order than the classes
        ("490\n361\n", "a space, and a class, got '490'"),
        (b"1.png \xff\n", "cannot be read"),
    ],
)
def test_bad_list_is_refused(tmp_path, content, message):
    image(tmp_path / "1.png")
    image(tmp_path / "2.png")
    (tmp_path / "val.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused(lambda: open_image_list(tmp_path, tmp_path / "val.txt"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_list_that_is_a_pipe_or_too_long_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "val.txt")
    with pytest.raises(DataError, match=r"val.txt must be a text file .*cannot be read \(it is a named pipe, not a regular file\)"):
        open_image_list(tmp_path, list_of(tmp_path))
    (tmp_path / "val.txt").unlink()
    (tmp_path / "val.txt").write_text("a.png 3\n" * 10, encoding="utf-8")
    assert open_image_list(tmp_path, list_of(tmp_path)).classes == ["3"]
    monkeypatch.setattr("core.data.layouts.LABELS_BYTES", 79)
    with pytest.raises(DataError, match="it has more than 79 bytes"):
        open_image_list(tmp_path, list_of(tmp_path))


def test_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "a.png")
    assert open_image_folder(tmp_path)[0][0].size == (8, 8)
    monkeypatch.setattr("core.data.layouts.PIXELS", 63)
    with pytest.raises(DataError, match="a.png must have at most 0 million pixels, got 8 x 8"):
        open_image_folder(tmp_path)[0]
