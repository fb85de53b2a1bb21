"""Best and worst images: their order by hand, and the picture of them."""

import numpy as np

from core.comparison.examples import SHOWN, Examples, by_recognition, examples, picture
from core.reporting import Frame


def frame(predicted, confidence, labels=None):
    count = len(predicted)
    images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, axis=1).repeat(2, axis=2).repeat(2, axis=3)
    labels = np.zeros(count, np.int64) if labels is None else np.array(labels)
    return Frame(7, images, labels, np.array(predicted), np.array(confidence, np.float32))


class Store:
    def __init__(self, kept):
        self.frames, self.kept = self, kept

    def read(self, run_id, method):
        return self.kept


def test_order_is_that_of_the_confidence_in_the_label():
    # image 1 is taken for class 2 with certainty, image 3 for class 1 by a small margin
    known = frame([0, 2, 0, 1, 0], [0.9, 1.0, 0.4, 0.3, 0.95])
    assert by_recognition(known).tolist() == [4, 0, 2, 3, 1]
    found = examples(Store(known), "run", "adam")
    assert found.best.images[:, 0, 0, 0].tolist() == [4, 0]  # no image is in both
    assert found.worst.images[:, 0, 0, 0].tolist() == [1, 3]
    assert found.worst.predicted.tolist() == [2, 1]
    many = examples(Store(frame([0] * 30, np.linspace(0, 1, 30))), "run", "adam")
    assert many.best.images[:, 0, 0, 0].tolist() == [29, 28, 27, 26, 25]
    assert many.worst.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_none_without_images_or_predictions():
    assert examples(Store(None), "run", "adam") is None
    known = frame([0, 0], [0.5, 0.5])
    assert examples(Store(Frame(1, known.images, known.labels)), "run", "adam") is None


def test_picture_has_a_row_for_each_method():
    few = examples(Store(frame([0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4])), "run", "adam")
    many = examples(Store(frame([0] * 30, np.linspace(0, 1, 30))), "run", "mi-fgsm")
    drawn = picture([few, many])
    assert drawn.shape == (2 * 3 - 1, (2 * SHOWN + 1) * 3 - 1, 4)
    assert drawn[0, ::3, 0].tolist() == [3, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert drawn[0, ::3, 3].tolist() == [255, 255, 0, 0, 0, 0, 255, 255, 0, 0, 0]
    assert drawn[3, ::3, 0].tolist() == [29, 28, 27, 26, 25, 0, 0, 1, 2, 3, 4]
    assert isinstance(few, Examples)
