"""What is no file of weights is recognized by its start or its name; files of weights are not."""

import pytest

from core.models.other_formats import other_format, unknown_format


@pytest.mark.parametrize(
    ("start", "name", "words"),
    [
        (b"\x08\x08\x12\x07pyt", "a.bin", "an ONNX file, in which the BatchNorm layers are usually folded"),
        (b"anything.", "a.ONNX", "an ONNX file"),
        (b"\x89HDF\r\n\x1a\n", "a.pth", "a Keras file"),
        (b"PK\x03\x04.....", "a.keras", "a Keras file"),
        (b"", "a.h5", "a Keras file"),
        (b"\x1c\x00\x00\x00TFL3\x00", "a.pt", "a TensorFlow Lite file"),
        (b"", "a.tflite", "a TensorFlow Lite file"),
    ],
)
def test_other_formats_say_what_to_do_instead(start, name, words):
    found = other_format(start, name)
    assert found is not None
    what, lines = found
    assert what.startswith(words)
    assert len(lines) == 3
    assert "torch.export.save" in lines[-1]


def test_array_of_numpy_is_named():
    what, lines = other_format(b"\x93NUMPY\x01\x00v", "a.npy") or ("", ())
    assert what.startswith("an array of NumPy: save a dictionary of tensors")
    assert lines[-1] == 'torch.save(network.state_dict(), "weights.pth")'


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\x08\x01\0\0\0\0\0\0{", "a.safetensors"),
        (b"PK\x03\x04.....", "a.pth"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{", "a.safetensors"),
        (b"\x80\x02c", "a.pt"),
        (b"", "a"),
    ],
)
def test_weights_are_no_other_format(start, name):
    assert other_format(start, name) is None


@pytest.mark.parametrize(
    ("start", "what", "line"),
    [
        (b"", "an empty file: copy or download it again", None),
        (b"version h", "a pointer of Git LFS instead of the file: fetch the file itself", "git lfs pull"),
        (b"<!DOCTYPE", "a web page instead of the file: download it again", None),
        (b"<html>\n<h", "a web page instead of the file: download it again", None),
        (b"hello, th", "a text file that begins with 'hello, th'", 'torch.save(network.state_dict(), "weights.pth")'),
        (b"\x00\x01hello", "a file that begins with b'\\x00\\x01hello'", None),
        (b"hello\n\x00", "a file that begins with b'hello\\n\\x00'", None),
    ],
)
def test_unknown_formats_say_what_they_are(start, what, line):
    said, lines = unknown_format(start)
    assert said.startswith(what)
    assert (lines[-1] if lines else None) == line
