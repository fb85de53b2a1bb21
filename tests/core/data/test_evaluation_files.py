"""Which folders are labeled, which are not, and which are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from core.data.evaluation_files import evaluation_targets, open_evaluation_files
from core.errors import DataError
from core.models.registry import ModelSpec

SPEC = ModelSpec("pets", "none", ("ant", "bee", "cat"), 8, (0.5,) * 3, (0.25,) * 3, "nothing")


def with_images(root, *places):
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / place)
    return root


def opened(root, spec=SPEC, **options):
    return open_evaluation_files(root, spec, ["none"], **options)


def found(root, spec=SPEC):
    """Paths of the images in their order, and the notes."""
    files = opened(root, spec)
    assert files.classes == []
    assert files.targets == list(range(len(files)))
    return [str(Path(path).relative_to(root)) for path in files.paths], files.notes


NO_FOLDER = "has no folder for each class of pets: measured without labels."


@pytest.mark.parametrize(
    "places",
    [
        ("1.png", "2.png"),
        ("photos/1.png", "photos/2.png"),
        ("1.png", "trip/2.png", "trip/day one/3.png"),
        ("2024/1.png", "2025/2.png"),
        ("dog/1.png", "horse/2.png"),
        ("dog/1.png", "n01440764/2.png"),
        ("a/1.png", "b/1.png", "c/1.png", "d/1.png"),  # more than there are classes
    ],
)
def test_folders_without_a_class_have_no_labels(tmp_path, places):
    paths, notes = found(with_images(tmp_path, *places))
    assert sorted(paths) == sorted(places)
    assert notes[-1] == f"'{tmp_path.name}' {NO_FOLDER}"


def test_order_is_that_of_the_names_and_what_is_no_image_is_left_out(tmp_path):
    with_images(tmp_path, "b/2.png", "b/1.png", "a.png", "b/c/0.png", ".hidden.png", "b/.thumbs/9.png")
    (tmp_path / "b" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    paths, notes = found(tmp_path)
    assert paths == ["a.png", "b/1.png", "b/2.png", "b/c/0.png"]
    assert len(notes) == 1


def test_the_best_of_several_parts_is_used(tmp_path):
    paths, notes = found(with_images(tmp_path, "train/1.png", "val/2.png", "val/3.png"))
    assert paths == ["val/2.png", "val/3.png"]
    assert notes == [f"'{tmp_path.name}' {NO_FOLDER}"]


@pytest.mark.parametrize(
    ("places", "targets"),
    [
        (("Ant/1.png", "cat/2.png"), [0, 2]),
        (("0/1.png", "2/2.png"), [0, 2]),
        (("1/1.png", "3/2.png"), [0, 2]),  # the numbers begin with 1
        (("x/1.png", "y/2.png", "z/3.png"), [0, 1, 2]),  # as many as classes: in order
    ],
)
def test_folders_of_classes_are_labeled(tmp_path, places, targets):
    files = opened(with_images(tmp_path, *places))
    indices = evaluation_targets(files, SPEC)
    assert [indices[target] for target in files.targets] == targets
    assert not any("without labels" in note for note in files.notes)


def test_as_many_folders_as_classes_with_the_empty_ones(tmp_path):
    (with_images(tmp_path, "x/1.png", "z/1.png") / "y").mkdir()
    assert evaluation_targets(opened(tmp_path), SPEC) == [0, 2]


@pytest.mark.parametrize(
    "places",
    [
        ("ant/1.png", "cta/2.png"),
        ("ant/1.png", "bees/1.png", "cat/1.png"),
        ("ant/1.png", "bee/1.png", "cat/1.png", "cats/1.png"),
        ("0/1.png", "l/1.png"),
        ("1/1.png", "2a/1.png", "0/1.png", "x/1.png"),
    ],
)
def test_one_misspelled_class_is_refused_rather_than_measured_without_labels(tmp_path, places):
    files = opened(with_images(tmp_path, *places))
    assert files.classes
    with pytest.raises(DataError, match=r"must have the names of the classes of pets .*; images in a single folder are measured without"):
        evaluation_targets(files, SPEC)


def test_a_list_is_always_one_of_classes(tmp_path):
    with_images(tmp_path / "a", "1.png", "2.png")
    (tmp_path / "a" / "val.txt").write_text("1.png dog\n2.png horse\n", encoding="utf-8")
    files = opened(tmp_path / "a")
    with pytest.raises(DataError, match="classes of .* must have the names of the classes of pets"):
        evaluation_targets(files, SPEC)
    with_images(tmp_path / "b", "dog/1.png", "horse/2.png")
    (tmp_path / "b" / "classes.json").write_text(json.dumps({"dog": "bee"}), encoding="utf-8")
    files = opened(tmp_path / "b")
    with pytest.raises(DataError, match="'horse' is missing"):
        evaluation_targets(files, SPEC)


def test_wordnet_ids_of_the_network_are_classes(tmp_path):
    imagenet = replace(SPEC, classes=tuple(f"class {index}" for index in range(1000)))
    files = opened(with_images(tmp_path, "n01440764/1.png", "n99999999/2.png"), imagenet)
    with pytest.raises(DataError, match="must be among the 1,000 WordNet ids of the classes of pets, got n99999999"):
        evaluation_targets(files, imagenet)
    paths, _ = found(with_images(tmp_path / "other", "n99999998/1.png", "n99999999/2.png"), imagenet)
    assert len(paths) == 2


def test_a_folder_without_images_or_with_a_circle_is_refused(tmp_path):
    with pytest.raises(DataError, match="must contain images, got no folders"):
        opened(tmp_path)
    (with_images(tmp_path, "dog/1.png", "2.png") / "dog" / "again").symlink_to(tmp_path / "dog")
    with pytest.raises(DataError, match="links must not lead to one of their parent folders"):
        opened(tmp_path)
