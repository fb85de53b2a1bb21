"""Manifests from outside: statements of unexpected types are left out, and no reader fails on any of them."""

import copy
import json
import math
import random

import pytest

from core.config import GenerationConfig
from core.data.image_sets import ImageSet, load_image_set, save_image_set
from core.data.manifests import parse_manifest
from core.errors import DataError
from core.evaluation.diversity import snapshot_groups
from core.export.card import MethodImages, _changes, _generated
from core.export.image_sets import export_images
from core.generation.loop import synthesize

FOREIGN = [
    None, True, "", "text", "\ud800", [], {}, [[]], [None], {"a": {}}, [{"step": 1}], [1, "a", None], 0, -1, 1.5, math.nan, math.inf,
    10**18, 10**400, -1e308, json.loads("[" * 25 + "]" * 25),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(embedded) -> ImageSet:
    """A real set of few images."""
    images, _ = synthesize(embedded, GenerationConfig(images=4, iterations=2, batch_size=2, snapshots=2), "adam")
    return images


def test_manifest_of_a_generation_is_kept(made):
    manifest = {**made.manifest, "changes": [{"step": 2, "name": "beta", "value": 0.25}]}
    assert parse_manifest(json.dumps(manifest)) == json.loads(json.dumps(manifest))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding):
    assert parse_manifest('{"classes": ["ä", "ε"]}'.encode(encoding)) == {"classes": ["ä", "ε"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "must be a JSON object"),
        (b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "at most 30 levels"),
        (b'{"a": ' + b"[" * 200_000, "at most 30 levels"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_manifest_is_refused(content, words):
    with pytest.raises(ValueError, match=words):
        parse_manifest(content)


def test_numbers_that_are_not_finite_become_none():
    assert parse_manifest('{"a": [NaN, -Infinity, 1e999, 1.5]}') == {"a": [None, None, None, 1.5]}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"summary": 3}, {}),
        ({"summary": {"seconds": "3", "images": 10**400, "bns_loss_last": 2.5, "a": "x"}}, {"summary": {"bns_loss_last": 2.5, "a": "x"}}),
        ({"summary": {"images": True}}, {"summary": {}}),
        ({"config": {"iterations": "many"}}, {}),
        ({"config": {"unknown": 1}}, {}),
        ({"config": [1]}, {}),
        ({"changes": {"step": 1}}, {}),
        ({"changes": [{"step": 1, "name": "beta"}]}, {}),
        ({"changes": [{"step": 1, "name": "beta", "value": "0.25"}]}, {}),
        ({"other": [1, {"a": None}]}, {"other": [1, {"a": None}]}),
    ],
)  # fmt: skip
def test_statements_of_other_types_are_left_out(given, kept):
    assert parse_manifest(json.dumps(given)) == kept


def mutated(manifest: dict, chance: random.Random) -> dict:
    """With one to three values at random places deleted, replaced or added."""
    manifest = copy.deepcopy(manifest)
    for _ in range(chance.randint(1, 3)):
        places, waiting = [], [manifest]
        while waiting:
            value = waiting.pop()
            places += [(value, key) for key in (value if isinstance(value, dict) else range(len(value)))]
            waiting += [one for one in (value.values() if isinstance(value, dict) else value) if isinstance(one, (dict, list))]
        if not places:
            break
        where, key = chance.choice(places)
        action = chance.choice(("delete", "replace", "replace", "add"))
        if action == "delete":
            del where[key]
        elif action == "add" and isinstance(where, dict):
            where["images of others"] = copy.deepcopy(chance.choice(FOREIGN))
        else:
            where[key] = copy.deepcopy(chance.choice(FOREIGN))
    return manifest


def test_no_reader_fails_on_a_foreign_manifest(made, embedded, tmp_path):
    chance = random.Random(7)
    real = json.loads(json.dumps({**made.manifest, "changes": [{"step": 2, "name": "beta", "value": 0.25}]}))
    (tmp_path / "set").mkdir()
    save_image_set(made, tmp_path / "set")
    generated = refused = 0
    for number in range(200):
        (tmp_path / "set" / "manifest.json").write_text(json.dumps(mutated(real, chance)), encoding="utf-8")
        try:
            images = load_image_set(tmp_path / "set")
        except DataError:
            refused += 1
            continue
        snapshot_groups(images)
        method = MethodImages("adam", images.manifest, len(images), {})
        if "summary" in images.manifest:
            generated += 1
            assert len(_generated(method, images.manifest["summary"])) == 6
        if images.manifest.get("changes"):
            _changes(method)
        if number % 10 == 0:
            export_images(images, embedded, "safetensors", tmp_path / "out" / str(number))
            export_images(images, embedded, "npz", tmp_path / "out" / f"{number}.npz")
            written = (tmp_path / "out" / str(number) / "manifest.json").read_text(encoding="utf-8")
            json.loads(written, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert generated > 50
    assert refused < 10
