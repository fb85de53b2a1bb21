import numpy as np
import pytest

from core.export.contact_sheet import EMPTY, class_columns, contact_sheet, evenly_spaced


def test_images_form_a_grid_with_transparent_gaps():
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 4), np.uint8) + 10
    sheet = contact_sheet(images, 2)
    assert sheet.shape == (5, 9, 4)
    assert (sheet[:2, :4] == [10, 10, 10, 255]).all()
    assert (sheet[:2, 5:] == [11, 11, 11, 255]).all()
    assert (sheet[3:, :4] == [12, 12, 12, 255]).all()
    for transparent in (sheet[2], sheet[:, 4], sheet[3:, 5:]):
        assert not transparent.any()


def test_cells_may_be_empty_and_images_enlarged():
    images = np.full((2, 3, 1, 1), 7, np.uint8)
    sheet = contact_sheet(images, 3, [1, EMPTY, 0], gap=2, scale=3)
    assert sheet.shape == (3, 13, 4)
    assert sheet[0, :, 3].tolist() == [255] * 3 + [0] * 7 + [255] * 3


def test_one_class_per_column():
    labels = np.array([3, 5, 3, 5, 3])
    assert class_columns(labels, [3, 5]) == [0, 1, 2, 3, 4, EMPTY]
    assert class_columns(labels, [3, 5], rows=1) == [0, 1]
    assert class_columns(labels, [4], rows=2) == [EMPTY, EMPTY]
    assert class_columns(labels, []) == []


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0]), (3, [0, 1, 2]), (9, [0, 3, 5, 8])])
def test_evenly_spaced(count, expected):
    assert evenly_spaced(np.arange(count), 4).tolist() == expected
