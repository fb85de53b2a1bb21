"""The folder of the reference `real`: found in every layout, and refused where a run is evaluated on it."""

import os

import pytest
from PIL import Image

from core.data.real_images import check_real_images, open_real_images
from core.errors import DataError


def pictures(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def test_classes_are_not_needed_and_the_training_part_is_used(tmp_path):
    for part, name in (("train", "a.png"), ("val", "b.png")):
        pictures(tmp_path / part / "cat", name)
    files = open_real_images(str(tmp_path))
    assert [os.path.basename(path) for path in files.paths] == ["a.png"]
    assert files.notes == []
    (tmp_path / "train").rename(tmp_path / "unknown")
    assert len(open_real_images(str(tmp_path))) == 2  # no parts of a data set
    loose = pictures(tmp_path / "loose", "c.png", "d.png")
    assert len(open_real_images(str(loose), str(tmp_path / "val"))) == 2


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("", "got none"), ("nowhere", "got 'nowhere'"), ("a\nb", "got ")],
)
def test_what_is_no_folder_is_refused(name, sentence):
    with pytest.raises(DataError, match="^real_images must be a folder of images, ") as error:
        check_real_images(name, "auto")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="^real_images must be a folder with at least one image, got none in "):
        open_real_images(str(tmp_path))


def test_evaluation_images_are_refused(tmp_path):
    data = pictures(tmp_path / "data", "a.png", "b.png")
    same = "^real_images must be another folder than that of the evaluation images, got "
    with pytest.raises(DataError, match=same):
        check_real_images(str(data), str(data))
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(DataError, match=same):
        open_real_images(str(tmp_path / "link"), str(data))
    # one of them among others, in a link
    mixed = pictures(tmp_path / "mixed", "c.png")
    (mixed / "d.png").symlink_to(data / "a.png")
    (mixed / "broken.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="^real_images must have no evaluation images, got 1 of '.*data' in '.*mixed'$"):
        open_real_images(str(mixed), str(data))
    # the folder above, and a folder of one class
    with pytest.raises(DataError, match="got 2 of"):
        open_real_images(str(tmp_path), str(data))
    assert len(open_real_images(str(mixed), "auto")) == 3
