"""The index: shares against counts by hand, what is in the file of assets/, and its size."""

from collections import Counter

import pytest

from core.models.architecture_index import FILE, ArchitectureIndex, Entry, load_index, save_index
from core.recipes.architecture_index import entry_of

ENTRIES = [
    Entry("zoo:a", Counter({(8, 3, 3, 3): 1, (8,): 4}), 2),
    Entry("zoo:b", Counter({(8, 3, 3, 3): 1, (8,): 8, (8, 8, 3, 3): 1}), 1),
    Entry("zoo:c", Counter({(16,): 4}), 2),
]


@pytest.fixture
def index(tmp_path) -> ArchitectureIndex:
    save_index(ENTRIES, tmp_path / "index.npz")
    return load_index(tmp_path / "index.npz")


def test_sizes_count_the_classifier(index):
    assert index.sizes() == {"zoo:a": 7, "zoo:b": 11, "zoo:c": 6}


def test_shares_are_those_of_common_tensors(index):
    a_with_head = Counter({(8, 3, 3, 3): 1, (8,): 4, (5, 8): 1, (5,): 1})
    # of zoo:b: the kernel and four of eight vectors, of its ten tensors
    assert index.shares(a_with_head) == pytest.approx([1, 5 / 10, 0])
    # more tensors than the architecture and its head have
    assert index.shares(a_with_head + Counter({(7, 7): 5})) == pytest.approx([5 / 10, 5 / 11, 0])


def test_likely_are_sorted_and_the_alike_are_kept(index):
    shapes = ENTRIES[0].shapes
    assert index.likely([shapes], 1) == [("zoo:a", 1.0)]
    assert [name for name, _ in index.likely([shapes, ENTRIES[1].shapes], 1)] == ["zoo:a", "zoo:b"]
    assert index.likely([Counter({(99,): 1})], 5) == []


def test_index_of_the_product_is_small_and_has_all_zoos():
    assert FILE.stat().st_size < 1_000_000
    zoos = Counter(name.partition(":")[0] for name in load_index().architectures)
    assert zoos["timm"] > 700
    assert zoos["pytorchcv"] > 500
    assert zoos["torchvision"] > 50


@pytest.mark.parametrize("name", ["torchvision:resnet18", "pytorchcv:resnet20_cifar10"])
def test_index_of_the_product_is_what_the_recipe_makes(name):
    entry = entry_of(name)
    assert isinstance(entry, Entry)
    index = load_index()
    assert index.shares(entry.shapes)[index.architectures.index(name)] == 1
    assert entry.others == 2  # weight and bias of the classifier


def test_recipe_says_what_it_leaves_out():
    assert entry_of("torchvision:squeezenet1_1") == "no BatchNorm layer with running statistics"
    assert "must be a classifier" in entry_of("timm:aimv2_1b_patch14_224")
