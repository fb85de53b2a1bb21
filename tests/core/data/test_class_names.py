"""The class of a folder: by a mapping file, its name, its WordNet id, its number, or its position."""

import json
import os

import pytest
from timm.data import ImageNetInfo
from torchvision.models import ResNet18_Weights

from core.data.class_names import class_mapping, dataset_mapping, evaluation_source, wordnet_ids
from core.errors import DataError
from core.models.registry import MODELS, ModelSpec

TORCHVISION = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
TIMM = tuple(ImageNetInfo().label_descriptions())
# fast.ai's ten easily distinguished classes, with their indices among the 1,000
IMAGENETTE = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
    "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip


def spec_of(*classes: str) -> ModelSpec:
    return ModelSpec("pets", "resnet20_cifar10", classes, 8, (0.5,) * 3, (0.25,) * 3, "nothing")


def refused(folders, spec, source="somewhere") -> str:
    with pytest.raises(DataError) as error:
        class_mapping(folders, spec, str(source))
    message = str(error.value)
    assert "\n" not in message
    assert "must" in message
    return message


@pytest.mark.parametrize(
    ("data", "classes", "source"),
    [
        ("auto", MODELS["resnet20_cifar10"][1].classes, "embedded"),
        ("auto", ("Truck", *MODELS["resnet20_cifar10"][1].classes[:-1]), "embedded"),  # in another order
        ("auto", tuple(map(str, range(10))), None),  # ten classes without names may be any
        ("auto", tuple(f"class {index}" for index in range(10)), None),
        ("auto", (*MODELS["resnet20_cifar10"][1].classes, "fish"), None),
        ("auto", ("cat", "cat"), None),
        ("none", MODELS["resnet20_cifar10"][1].classes, None),
        ("embedded", tuple(map(str, range(10))), "embedded"),  # as asked for
        ("a folder", ("cat",), "a folder"),
    ],
)
def test_evaluation_images_that_fit_the_network_are_chosen_by_its_class_names(data, classes, source):
    assert evaluation_source(data, spec_of(*classes)) == source


@pytest.mark.parametrize("classes", [TORCHVISION, TIMM, tuple(map(str, range(1000))), tuple(f"class_{i:03}" for i in range(1000))])
def test_wordnet_ids_for_imagenet(classes):
    assert class_mapping(list(IMAGENETTE), spec_of(*classes), "somewhere") == list(IMAGENETTE.values())


def test_all_wordnet_ids_are_in_order():
    ids = wordnet_ids(spec_of(*TORCHVISION))
    assert ids is not None
    assert list(ids) == sorted(ids)
    assert list(ids.values()) == list(range(1000))


def test_wordnet_ids_for_imagenet_12k():
    info = ImageNetInfo("imagenet-12k")
    chosen = [5, 7000, 11820]
    folders = [info.index_to_label_name(index) for index in chosen]
    assert class_mapping(folders, spec_of(*info.label_descriptions()), "somewhere") == chosen


def test_wordnet_id_outside_imagenet_is_refused():
    assert "must be among the 1,000 WordNet ids" in refused(["n00004475", "n01440764"], spec_of(*TIMM))


def test_wordnet_ids_do_not_apply_to_a_network_with_other_classes():
    others = spec_of(*(f"part {i:04} of a machine" for i in range(1000)))
    assert wordnet_ids(others) is None
    assert "got 10 folders with 'n01440764'" in refused(list(IMAGENETTE), others)
    # nor to a network with the 1,000 classes in another order
    assert "got 10 folders with 'n01440764'" in refused(list(IMAGENETTE), spec_of(*reversed(TIMM)))


def test_wordnet_ids_are_mapped_in_order_if_their_count_matches():
    assert class_mapping(list(IMAGENETTE), spec_of(*"abcdefghij"), "somewhere") == list(range(10))


@pytest.mark.parametrize(
    ("folder", "index"),
    [
        ("great white shark", 2),  # torchvision
        ("great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias", 2),  # timm
        ("great_white_shark", 2),
        ("Great White  Shark", 2),
        ("tench, Tinca tinca", 0),
    ],
)
@pytest.mark.parametrize("classes", [TORCHVISION, TIMM])
def test_names_of_both_zoos(folder, index, classes):
    assert class_mapping([folder], spec_of(*classes), "somewhere") == [index]


def test_exact_match_takes_precedence():
    # torchvision: the dog is Cardigan, the garment is cardigan
    assert class_mapping(["Cardigan", "cardigan"], spec_of(*TORCHVISION), "somewhere") == [264, 474]
    assert class_mapping(["grey_fox", "grey fox"], spec_of("grey fox", "grey_fox"), "somewhere") == [1, 0]


def test_names_match_in_any_encoding_of_accents():
    assert class_mapping(["u\u0308ber"], spec_of("ant", "\u00fcber"), "somewhere") == [1]


def test_name_that_matches_two_classes_is_refused():
    assert "'CARDIGAN' matches 264 (Cardigan) and 474 (cardigan)" in refused(["CARDIGAN"], spec_of(*TORCHVISION))
    # the bird and the machine have the same name in WordNet
    assert "'crane' matches 134 (crane) and 517 (crane)" in refused(["crane"], spec_of(*TIMM))


def test_two_folders_of_one_class_are_refused():
    assert "got 'Ant' and 'ant' for class 0" in refused(["Ant", "ant"], spec_of("ANT", "bee"))
    assert "got '007' and '7' for class 7" in refused(["007", "1", "7"], spec_of(*"abcdefgh"))


def test_numbers_are_class_indices():
    spec = spec_of(*(f"kind {chr(97 + i)}" for i in range(12)))
    assert class_mapping(["0", "10", "2"], spec, "somewhere") == [0, 10, 2]
    assert class_mapping(["007", "011"], spec, "somewhere") == [7, 11]
    # sorted by name, 10 is before 2
    every = sorted(map(str, range(12)))
    assert class_mapping(every, spec, "somewhere") == [int(name) for name in every]


def test_numbers_that_are_class_names_are_names():
    spec = spec_of(*sorted(map(str, range(12))))  # like a network trained on such folders
    assert class_mapping(["10", "2"], spec, "somewhere") == [2, 4]


def test_numbers_begin_with_1_if_the_number_of_classes_is_among_them():
    spec = spec_of("ant", "bee", "cat")
    for folders, expected, said in (
        (["1", "2", "3"], [0, 1, 2], True),
        (["03", "1"], [2, 0], True),
        (["0", "2"], [0, 2], False),
    ):
        notes: list[str] = []
        assert class_mapping(folders, spec, "somewhere", notes=notes) == expected
        assert notes == (["Numbers of the folders of somewhere are taken to begin with 1, which is 'ant'."] if said else [])
    assert class_mapping(["1", "2", "3"], spec_of("0", "1", "2"), "somewhere") == [0, 1, 2]
    for folders in (["0", "3"], ["1", "4"], ["0", "1", "2", "3"]):
        assert f"must be class indices, 0 to 2, got {folders[-1]}" in refused(folders, spec)
    with pytest.raises(DataError, match="0 to 2, got 3"):
        class_mapping(["1", "2", "3"], spec, "somewhere", empty=["0"])


def test_numbers_without_0_and_without_the_last_one_are_noted_as_a_guess():
    notes: list[str] = []
    assert class_mapping(["1", "2"], spec_of("cat", "dog", "emu"), "somewhere", notes=notes) == [1, 2]
    assert notes == ["Numbers of the folders of somewhere are taken to begin with 0, which is 'cat'; none of them is 0."]


@pytest.mark.parametrize(
    ("pattern", "third", "order"),
    [("{}", 10, "the order of their numbers"), ("class {}", 10, "the order of their numbers"), ("type{}", 2, "alphabetical order")],
)
def test_an_order_that_numbers_in_names_leave_open_is_noted(pattern, third, order):
    # torchvision's ImageFolder would number "0", "1", "10", "11", "2" in this order, so nobody can know what the network was trained with
    unnamed, folders, notes = spec_of(*(f"class {index}" for index in range(12))), sorted(pattern.format(i) for i in range(12)), []
    assert class_mapping(folders, unnamed, "somewhere", notes=notes)[2] == third
    assert notes == [
        f"Folders of somewhere are taken to be classes in {order}: {folders[2]!r} is class {third}; "
        "if the network was trained with another order, write it to classes.json in that folder."
    ]


def test_an_order_is_noted_only_where_it_is_a_guess(tmp_path):
    unnamed, notes = spec_of(*(f"class {index}" for index in range(12))), []
    class_mapping([f"type{index:02}" for index in range(12)], unnamed, "somewhere", notes=notes)
    class_mapping([str(index) for index in range(10)], spec_of(*map(str, range(10))), "somewhere", notes=notes)
    class_mapping([str(index) for index in range(12)], unnamed, "val.txt", "classes", notes=notes)  # a list has indices
    (tmp_path / "classes.json").write_text(json.dumps({f"type{index}": index for index in range(12)}), encoding="utf-8")
    class_mapping([f"type{index}" for index in range(12)], unnamed, str(tmp_path), notes=notes)
    assert notes == []


def test_numbers_of_imagenet_begin_with_0():
    """Its own numbers, from 1 to 1,000, are in another order than the classes of every network."""
    assert "must be class indices, 0 to 999, got 1000" in refused(["1", "1000"], spec_of(*TIMM))


def test_numbers_are_decimal():
    assert "got 2 folders with '²'" in refused(["²", "1"], spec_of("ant", "bee", "cat"))


def test_unnamed_classes_are_mapped_in_order_without_a_note():
    notes: list[str] = []
    assert class_mapping(["x", "y"], spec_of("class 0", "class 1"), "somewhere", notes=notes) == [0, 1]
    assert notes == []


def test_other_names_are_mapped_in_order_if_their_count_matches():
    notes: list[str] = []
    assert class_mapping(["x", "y", "z"], spec_of("ant", "bee", "cat"), "somewhere", notes=notes) == [0, 1, 2]
    assert notes == [
        "Names of the folders of somewhere are not those of the classes, so they are matched in order: "
        "'x' is 'ant', 'y' is 'bee', 'z' is 'cat' ..."
    ]
    assert "got 2 folders with 'x'" in refused(["x", "y"], spec_of("ant", "bee", "cat"))
    assert "got 3 folders with 'x'" in refused(["ANT", "x", "y"], spec_of("ant", "bee", "cat"))


def test_empty_folders_count_where_the_order_decides():
    notes: list[str] = []
    assert class_mapping(["x", "z"], spec_of("ant", "bee", "cat"), "somewhere", empty=["y"], notes=notes) == [0, 2]
    assert notes == ["Empty folders of somewhere count as classes: 'y'."]
    assert class_mapping(["cat", "ant"], spec_of("ant", "bee", "cat"), "somewhere", empty=["y"]) == [2, 0]
    assert class_mapping(["x", "y", "z"], spec_of("ant", "bee", "cat"), "somewhere", empty=["a"]) == [0, 1, 2]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_mapping_file_with_a_byte_order_mark_and_numbers_from_1(tmp_path, encoding):
    (tmp_path / "classes.json").write_bytes(json.dumps({"a": 3, "b": 1}).encode(encoding))
    notes: list[str] = []
    assert class_mapping(["a", "b"], spec_of("ant", "bee", "cat"), str(tmp_path), notes=notes) == [2, 0]
    assert len(notes) == 1


@pytest.mark.parametrize("name", ["classes.json", "class_to_idx.json"])
def test_mapping_file_takes_precedence_over_names(tmp_path, name):
    (tmp_path / name).write_text(json.dumps({"ant": 2, "7": "BEE", "not there": 1}), encoding="utf-8")
    assert class_mapping(["7", "ant"], spec_of("ant", "bee", "cat"), str(tmp_path)) == [1, 2]


def test_mapping_file_may_give_two_folders_one_class(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"terrier": 0, "poodle": "dog"}), encoding="utf-8")
    assert class_mapping(["poodle", "terrier"], spec_of("dog", "cat"), str(tmp_path)) == [0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 3, "b": 0}', "must be 0 to 2 or the name of a class of pets, got 3"),
        ('{"a": -1, "b": 0}', "got -1"),
        ('{"a": true, "b": 0}', "got True"),
        ('{"a": 1.0, "b": 0}', "got 1.0"),
        ('{"a": null, "b": 0}', "got None"),
        ('{"a": "wolf", "b": 0}', "got 'wolf'"),
        ('{"a": [1], "b": 0}', "got [1]"),
        ('{"a": 1}', "must be in its list of classes, 'b' is missing"),
        ("[0, 1]", "but cannot be read (got [0, 1])"),
        ("{", "classes.json must be a JSON object"),
        ("[" * 100_000, "classes.json must be a JSON object"),
        (b"\xff\xfe", "classes.json must be a JSON object"),
        (" " * (17 << 20), "but cannot be read (it has more than 8,388,608 bytes)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_mapping_file_is_refused(tmp_path, content, message):
    (tmp_path / "classes.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused(["a", "b"], spec_of("ant", "bee", "cat"), tmp_path)


def test_two_mapping_files_are_refused(tmp_path):
    for name in ("classes.json", "class_to_idx.json"):
        (tmp_path / name).write_text('{"a": 0}', encoding="utf-8")
    assert "must have only one list of classes, got classes.json and class_to_idx.json" in refused(["a"], spec_of("ant"), tmp_path)


def test_published_sets_are_mapped_in_order_only_to_numbers():
    assert dataset_mapping(["ant", "bee"], spec_of("Bee", "cat", "ant")) == [2, 0]
    assert dataset_mapping(["ant", "bee"], spec_of("0", "1")) == [0, 1]
    assert dataset_mapping(["ant", "bee"], spec_of("x", "y")) is None
    assert dataset_mapping(["ant", "bee"], spec_of("0", "1", "2")) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_list_of_classes_that_is_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "classes.json")
    with pytest.raises(DataError, match="classes.json must be a JSON object .*named pipe"):
        class_mapping(["cat"], MODELS["resnet20_cifar10"][1], str(tmp_path))
