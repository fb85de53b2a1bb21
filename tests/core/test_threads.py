import pytest
import torch

from core.threads import cpu_threads


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_thread_count_is_set_and_restored():
    with cpu_threads(3):
        assert torch.get_num_threads() == 3
        with cpu_threads(2):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 1


def test_zero_leaves_the_choice_to_torch():
    with cpu_threads(0):
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 1


def test_thread_count_is_restored_after_an_exception():
    with pytest.raises(KeyError), cpu_threads(2):
        raise KeyError
    assert torch.get_num_threads() == 1
