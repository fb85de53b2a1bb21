"""Images on which networks disagree, as HTML."""

import numpy as np
from safetensors.numpy import save_file

from core.comparison.confusion import Confusion
from core.evaluation.answers import Answers
from dashboard.images.disagreements import html, read


def confusion(labeled=True):
    theirs = Answers(np.array([0, 1, 2], np.int32), np.array([0.9, 0.8, 0.75], np.float16))
    ours = Answers(np.array([0, 2, 1], np.int32), np.array([0.9, 0.5, 0.6], np.float16))
    return Confusion(np.array([0, 1, 1], np.int32), theirs, ours, labeled)


def test_each_image_has_both_answers(tmp_path):
    file = tmp_path / "disagreements.safetensors"
    save_file({"images": np.zeros((2, 1, 4, 4), np.uint8), "positions": np.array([2, 1])}, file)
    found = read(file, confusion())
    shown = html(found, confusion(), ["cat", "<dog>", "frog"], "W4A4")
    first, second = shown.split("<img")[1:]
    assert "full precision: frog 75 % ✗<br>W4A4: &lt;dog&gt; 60 % ✓" in first
    assert "full precision: &lt;dog&gt; 80 % ✓<br>W4A4: frog 50 % ✗" in second
    assert "✓" not in html(found, confusion(labeled=False), ["cat", "dog", "frog"], "W4A4")


def test_files_of_other_answers_and_missing_ones_are_left_out(tmp_path):
    file = tmp_path / "disagreements.safetensors"
    assert read(file, confusion()) is None
    save_file({"images": np.zeros((1, 1, 4, 4), np.uint8), "positions": np.array([3])}, file)
    assert read(file, confusion()) is None
    file.write_bytes(b"damaged")
    assert read(file, confusion()) is None
