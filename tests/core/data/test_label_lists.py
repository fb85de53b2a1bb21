"""Lists of classes: file names and classes with spaces, encodings, and refusals."""

import os

import pytest

from core.data.label_lists import read_labels
from core.errors import DataError

IMAGES = {"1.png": "", "2.JPEG": "", "my cat.png": "", "a,b.png": "", "my": ""}


def read(tmp_path, content, images=IMAGES) -> dict[str, str]:
    (tmp_path / "val.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(tmp_path / "val.txt", images, tmp_path)


def refused(*arguments) -> str:
    with pytest.raises(DataError) as error:
        read(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "line",
    ["{} great white shark", "./{} great white shark", "/data/val/{}\tgreat white shark", ".\\val\\{}  great white shark\r",
     "{},great white shark", "{}; great white shark", '"{}" "great white shark"', '"{}","great white shark"'],
)  # fmt: skip
@pytest.mark.parametrize("name", IMAGES)
def test_forms_of_a_line(tmp_path, line, name):
    content = "file,label\n\nmissing image.png tench\n../../etc/passwd 0\n" + line.format(name) + "\n"
    assert read(tmp_path, content, {name: ""}) == {name: "great white shark"}


def test_the_longest_file_name_counts(tmp_path):
    lines = "my cat.png 3\nmy 4\na,b.png 5\n1.png 6\n2.JPEG 7"
    assert read(tmp_path, lines) == {"my cat.png": "3", "my": "4", "a,b.png": "5", "1.png": "6", "2.JPEG": "7"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings_of_windows(tmp_path, encoding):
    assert read(tmp_path, "1.png Bär\r\n".encode(encoding), {"1.png": ""}) == {"1.png": "Bär"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1.png 0\n2.JPEG 1\n1.png 1\n", "got two for '1.png'"),
        ("1.png 0\n", "got none for '2.JPEG'"),
        ("1.png 0\n2.JPEG\n", "line 2 of "),
        ("1.png 0\n2.JPEG\n", "a space, and a class, got '2.JPEG'"),
        ("my cat.png\n", "a space, and a class, got 'my cat.png'"),
        # ImageNet's ground truth file: one number per line, numbered in another order than the classes
        ("490\n361\n", "a space, and a class, got '490'"),
        (b"1.png \xff\n", "cannot be read"),
    ],
)
def test_bad_list_is_refused(tmp_path, content, message):
    assert message in refused(tmp_path, content)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_list_that_is_a_pipe_or_too_long_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "val.txt")
    with pytest.raises(DataError, match=r"val.txt must be a text file .*cannot be read \(it is a named pipe, not a regular file\)"):
        read_labels(tmp_path / "val.txt", IMAGES, tmp_path)
    (tmp_path / "val.txt").unlink()
    monkeypatch.setattr("core.data.label_lists.LABELS_BYTES", 7)
    assert read(tmp_path, "1.png 3", {"1.png": ""}) == {"1.png": "3"}
    assert "it has more than 7 bytes" in refused(tmp_path, "1.png 33")
