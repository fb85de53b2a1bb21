"""Images on which two networks disagree: which are kept, in what order, and at what size."""

import numpy as np
import torch
from safetensors.torch import load_file

from core.data.labeled import EvaluationSet
from core.evaluation.answers import DISAGREEMENTS, Answers
from core.stages.disagreements import LARGEST, save_disagreements


def packed(classes, confidence):
    return Answers(np.array(classes, np.int32), np.array(confidence, np.float16)).packed()


def test_images_with_other_answers_the_most_certain_first(tmp_path):
    images = torch.arange(6, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    # image 3 of the set was not compared, so position 3 is image 4
    compared = torch.tensor([0, 1, 2, 4, 5])
    theirs = packed([0, 1, 2, 0, 1], [0.9, 0.9, 0.5, 0.8, 0.99])
    ours = packed([1, 1, 0, 2, 0], [0.3, 0.9, 0.9, 0.9, 0.6])
    save_disagreements(EvaluationSet(images, None, "images", 4), compared, theirs, ours, tmp_path)
    found = load_file(tmp_path / DISAGREEMENTS)
    assert found["positions"].tolist() == [3, 4, 2, 0]  # the smaller confidences are 0.8, 0.6, 0.5 and 0.3
    assert found["images"][:, 0, 0, 0].tolist() == [4, 5, 2, 0]


def test_no_file_without_a_difference(tmp_path):
    images = EvaluationSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), None, "images", 4)
    answers = packed([0, 1], [0.9, 0.9])
    save_disagreements(images, torch.arange(2), answers, answers, tmp_path)
    assert not list(tmp_path.iterdir())


def test_large_images_are_averaged(tmp_path):
    rows = torch.arange(2 * LARGEST).remainder(2).mul(200).to(torch.uint8)  # 0, 200, 0, 200 ...
    images = rows.view(1, 1, -1, 1).expand(1, 3, -1, LARGEST).contiguous()
    answers = packed([0], [0.9]), packed([1], [0.9])
    save_disagreements(EvaluationSet(images, None, "images", (2 * LARGEST, LARGEST)), torch.arange(1), *answers, tmp_path)
    found = load_file(tmp_path / DISAGREEMENTS)["images"]
    assert found.shape == (1, 3, LARGEST, LARGEST // 2)
    assert found.unique().tolist() == [100]
