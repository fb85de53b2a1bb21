"""Folders of images: layouts, order, and refusals."""

import os

import numpy as np
import pytest
from PIL import Image, features
from torchvision.datasets import ImageFolder

from core.data.layouts import FOR_EVALUATION, FOR_TRAINING, open_all_images, open_images
from core.errors import DataError


def image(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(path)


def opened(path, **options):
    return open_images(path, FOR_EVALUATION, **options)


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
    mine, theirs = opened(tmp_path), ImageFolder(str(tmp_path))
    assert mine.classes == theirs.classes
    assert list(zip(mine.paths, mine.targets)) == theirs.samples
    assert len(mine) == 9
    assert [label for _, label in mine] == theirs.targets


def test_hidden_files_and_folders_are_skipped(tmp_path):
    for name in ("a/1.png", "a/._1.png", "a/.hidden/2.png", ".cache/3.png", "__MACOSX/4.png", "a/__MACOSX/5.png"):
        image(tmp_path / name)
    files = opened(tmp_path)
    assert (files.classes, files.paths) == (["a"], [str(tmp_path / "a" / "1.png")])


def test_links_are_followed(tmp_path):
    image(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "one.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    files = opened(tmp_path / "set")
    assert files.targets == [0, 1]
    assert [picture.size for picture, _ in files] == [(4, 4), (4, 4)]


@pytest.mark.parametrize(("link", "target"), [("a/again", "a"), ("a/b/up", "a"), ("a/up", "."), ("c", ".")])
def test_circular_link_is_refused(tmp_path, link, target):
    image(tmp_path / "a" / "b" / "1.png")
    (tmp_path / link).symlink_to(tmp_path / target)
    message = refused(lambda: opened(tmp_path))
    assert str(tmp_path / link) in message
    assert "must not lead to one of their parent folders" in message


@pytest.mark.parametrize("kind", ["broken", "itself", "pipe", "cut", "empty"])
def test_file_that_cannot_be_read_is_skipped_and_named(tmp_path, kind):
    for number in range(100):
        image(tmp_path / "a" / f"{number}.png")
    path = tmp_path / "a" / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "cut":
        image(path)
        path.write_bytes(path.read_bytes()[:50])
    elif kind == "empty":
        path.touch()
    else:
        path.symlink_to(tmp_path / "nowhere.png" if kind == "broken" else path)
    files = opened(tmp_path)
    files.check_headers()
    read = [files.read(index) for index in range(101)]
    assert [one is None for one in read].count(True) == 1
    assert files.damage() == [f"1 of 101 images of {tmp_path} cannot be read and are skipped: 'x.png'."]
    kept = opened(tmp_path).readable()
    assert (len(kept), kept.notes) == (100, files.damage())
    if kind != "cut":
        assert "x.png must be an image" in refused(opened(tmp_path, strict=True).check_headers)
    assert "x.png must be an image" in refused(opened(tmp_path, strict=True).readable)


def test_more_than_one_percent_of_damaged_images_stops(tmp_path):
    for number in range(199):
        image(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "x.png").touch()
    opened(tmp_path).check_headers()
    (tmp_path / "a" / "y.png").write_bytes(b"GIF89a")
    opened(tmp_path).check_headers()  # 2 of 201
    (tmp_path / "a" / "z.png").touch()
    message = refused(opened(tmp_path).check_headers)
    assert "x.png must be an image in a format" in message
    assert message.endswith("at most 1 % of the images may be skipped, got 3 of 202 so far")


def test_images_of_sixteen_bits_with_fewer_in_use_are_named(tmp_path):
    def save(name, white):
        Image.fromarray(np.full((4, 4), white, dtype=np.uint16)).save(tmp_path / "a" / name)

    image(tmp_path / "a" / "1.png")
    save("2.png", 4095)
    save("3.png", 100)
    files = opened(tmp_path)
    assert files.damage() == []  # none was read
    for index in range(3):
        files.read(index)
    (said,) = files.damage()
    assert said.startswith(f"Images of {tmp_path} with 16 bits have no value above 4,095 of 65,535, so they are dark for the network")
    save("4.png", 60_000)
    files = opened(tmp_path)
    for index in range(4):
        files.read(index)
    assert files.damage() == []


def test_pictures_in_formats_that_are_not_read_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.HEIC").touch()
    assert "got formats that are not read ('1.HEIC')" in refused(lambda: opened(tmp_path))
    image(tmp_path / "a" / "2.png")
    image(tmp_path / "b" / "3.png")
    (tmp_path / "b" / "more").mkdir()
    (tmp_path / "b" / "more" / "4.dcm").touch()
    (tmp_path / "b" / "notes.txt").touch()
    said = f"2 files of {tmp_path} have formats that are not read, and are ignored: '1.HEIC', '4.dcm'."
    assert opened(tmp_path).notes == [said]
    assert open_all_images(tmp_path, FOR_EVALUATION).notes == [said]


def test_folder_may_have_an_image_suffix(tmp_path):
    image(tmp_path / "a" / "b.png" / "1.png")
    assert len(opened(tmp_path)) == 1


def test_folders_without_images_are_ignored_and_named(tmp_path):
    assert "got no folders" in refused(lambda: opened(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "annotations" / "more").mkdir(parents=True)
    (tmp_path / "annotations" / "more" / "a.xml").touch()
    assert "got no images in 'annotations', 'empty'" in refused(lambda: opened(tmp_path))
    image(tmp_path / "a" / "1.png")
    image(tmp_path / "b" / "1.png")
    image(tmp_path / "logo.png")
    files = opened(tmp_path)
    assert (files.classes, files.targets, files.empty) == (["a", "b"], [0, 1], ["empty"])
    assert files.notes == [
        f"Folders of {tmp_path} without images are ignored: 'annotations', 'empty'.",
        f"Images of {tmp_path} beside the folders of its classes are ignored: 'logo.png'.",
    ]


@pytest.mark.parametrize("name", ["1.jfif", "1.JFIF", "1.gif", "1.avif", "1.jpe", "1.jp2", "1.tga"])
def test_formats_of_pillow(tmp_path, name):
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    image(tmp_path / "a" / name)
    assert opened(tmp_path)[0][0].size == (4, 4)


def test_root_of_the_file_system_is_refused(tmp_path):
    (tmp_path / "root").symlink_to("/")
    for folder in (tmp_path / "root", tmp_path.root):
        assert "the root of the file system" in refused(lambda folder=folder: opened(type(tmp_path)(folder)))


@pytest.mark.parametrize(
    ("names", "evaluated", "trained"),
    [
        (("train", "val"), "val", "train"),
        (("train", "val", "test"), "val", "train"),
        (("train", "valid", "test"), "valid", "train"),
        (("training", "validation", "testing"), "validation", "training"),
        (("Train", "Test"), "Test", "Train"),
        (("test", "val"), "val", "val"),
        (("train",), "train", "train"),
        (("valid",), "valid", "valid"),
    ],
)
def test_parts_beside_each_other(tmp_path, names, evaluated, trained):
    for name in names:
        image(tmp_path / name / f"class of {name}" / "1.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / ".git").mkdir()
    for parts, chosen in ((FOR_EVALUATION, evaluated), (FOR_TRAINING, trained)):
        files = open_images(tmp_path, parts)
        assert (files.classes, files.source) == ([f"class of {chosen}"], tmp_path / chosen)
        # only what is not the convention has to be said
        assert bool(files.notes) == (len(names) == 1 or chosen.lower() not in ("val", "train") or chosen == "val" and parts is FOR_TRAINING)


def test_other_folders_beside_parts_are_classes(tmp_path):
    for name in ("train/a/1.png", "val/a/1.png", "zebra/a/1.png"):
        image(tmp_path / name)
    assert opened(tmp_path).classes == ["train", "val", "zebra"]


def test_classes_one_folder_below(tmp_path):
    for name in ("a", "b"):
        image(tmp_path / "data" / "pets" / "images" / name / "1.png")
    (tmp_path / "data" / "pets" / "labels").mkdir()
    files = opened(tmp_path)
    assert files.classes == ["a", "b"]
    assert (
        files.notes[-1] == f"Images of {tmp_path / 'data/pets/images'} are used, the only folder of {tmp_path / 'data/pets'} with images."
    )
    for name in ("train", "val"):
        image(tmp_path / "other" / "set" / name / "cat" / "1.png")
    assert opened(tmp_path / "other").paths == [str(tmp_path / "other/set/val/cat/1.png")]


def test_only_folder_of_images_is_a_class(tmp_path):
    image(tmp_path / "a" / "1.png")
    image(tmp_path / "a" / "sub" / "1.png")
    files = opened(tmp_path)
    assert (files.classes, files.notes) == (["a"], [])


def test_list_is_used_for_images_without_folders(tmp_path):
    folder = tmp_path / "val"
    image(folder / "1.png")
    (folder / "annotations").mkdir()
    assert "labels are needed here, got images without either" in refused(lambda: opened(folder))
    (tmp_path / "val.txt").write_text("1.png 0\n", encoding="utf-8")
    assert opened(folder).source == tmp_path / "val.txt"
    assert opened(tmp_path).source == tmp_path / "val.txt"
    (folder / "val.txt").write_text("1.png 0\n", encoding="utf-8")
    assert opened(folder).source == folder / "val.txt"
    image(folder / "a" / "1.png")
    assert opened(folder).source == folder


def test_images_without_labels_where_none_are_needed(tmp_path):
    for name in ("b.png", "a.png", "c.gif"):
        image(tmp_path / name)
    files = opened(tmp_path, labels_needed=False)
    assert (files.classes, files.targets) == ([], [0, 1, 2])
    assert files.paths == [str(tmp_path / name) for name in ("a.png", "b.png", "c.gif")]


def test_list_gives_the_class_of_each_image(tmp_path):
    for name in ("1.png", "2.JPEG", "3.png"):
        image(tmp_path / name)
    (tmp_path / "val.txt").write_text("3.png great white shark\n2.JPEG tench\n1.png tench\n", encoding="utf-8")
    files = opened(tmp_path)
    assert files.classes == ["great white shark", "tench"]
    assert (files.paths, files.targets) == ([str(tmp_path / name) for name in ("1.png", "2.JPEG", "3.png")], [1, 1, 0])


def test_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "a.png")
    assert opened(tmp_path)[0][0].size == (8, 8)
    monkeypatch.setattr("core.data.pictures.PIXELS", 63)
    with pytest.raises(DataError, match="a.png must have at most 0 million pixels, got 8 x 8"):
        opened(tmp_path)[0]
