"""Files are written completely or not at all."""

import errno
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from core import files
from core.errors import ConfigError
from core.files import (
    PARTIAL,
    atomic_folder,
    atomic_write,
    check_regular,
    is_full,
    named_as,
    read_bounded,
    read_json,
    read_unicode,
    remove,
    remove_abandoned,
    remove_partials,
    sync_tree,
    temporary_copy_path,
    temporary_folder,
    write_json,
)


@pytest.fixture
def synced(monkeypatch):
    """The paths that were synced, in order."""
    paths = []
    monkeypatch.setattr(files, "sync", paths.append)
    return paths


@pytest.mark.parametrize("durable", [True, False])
def test_file_appears_when_it_is_complete(tmp_path, synced, durable):
    path = tmp_path / "a.txt"
    with atomic_write(path, durable) as partial:
        partial.write_text("new", encoding="utf-8")
        assert not path.exists()
        assert partial.parent == tmp_path
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]
    # the file before it is renamed, its folder afterwards
    assert synced == ([partial, tmp_path] if durable else [])


def test_file_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.txt", []
    monkeypatch.setattr(files, "sync", lambda what: seen.append((what.name, path.exists())))
    with atomic_write(path) as partial:
        partial.write_text("new", encoding="utf-8")
    assert seen == [(partial.name, False), (tmp_path.name, True)]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError("no")])
@pytest.mark.parametrize("before", [None, "old"])
def test_failing_block_keeps_the_earlier_file(tmp_path, error, before):
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_text(before, encoding="utf-8")

    def write():
        with atomic_write(path) as partial:
            partial.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        write()
    assert (path.read_text(encoding="utf-8") if path.exists() else None) == before
    assert not list(tmp_path.glob(f"*{PARTIAL}"))


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_failing_operation_keeps_the_earlier_file(tmp_path, monkeypatch, operation):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fails(*_):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, fails)
        with pytest.raises(OSError, match="broken"):
            write_json(path, {"a": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_file_has_the_default_permissions(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "whole") as partial:
        partial.touch(mode=0o600)
    assert stat.S_IMODE((tmp_path / "whole").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_partial_files_and_nothing_else_are_removed(tmp_path):
    kept = [tmp_path / "a.npz", tmp_path / "sub" / "b.json", tmp_path / "partial", tmp_path / "of.partial", tmp_path / ".hidden"]
    (tmp_path / "sub").mkdir()
    for path in kept:
        path.touch()
    (tmp_path / ".a.npz.partial").touch()
    (tmp_path / "sub" / ".b.json.partial").touch()
    (tmp_path / "sub" / ".out.run.partial" / "deep").mkdir(parents=True)
    removed = remove_partials(tmp_path)
    assert sorted(path.name for path in removed) == [".a.npz.partial", ".b.json.partial", ".out.run.partial"]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    assert remove_partials(tmp_path / "not there") == []


def test_temporary_copies_have_different_names(tmp_path):
    one, other = (temporary_copy_path(tmp_path / "out", name) for name in ("a", "b"))
    assert one != other
    assert one.parent == tmp_path  # on the same disk, so that it can be renamed
    one.mkdir()
    assert remove_partials(tmp_path) == [one]


def test_tree_is_synced_with_all_its_folders(tmp_path, synced):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    sync_tree(tmp_path)
    assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"}
    assert synced[-1] == tmp_path


def test_sync_waits_for_files_and_folders(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    waited = []
    monkeypatch.setattr(os, "fsync", lambda handle: waited.append(stat.S_ISDIR(os.fstat(handle).st_mode)))
    files.sync(tmp_path / "file")
    files.sync(tmp_path)
    assert waited == [False, True]
    with pytest.raises(FileNotFoundError):
        files.sync(tmp_path / "gone")


def test_remove_takes_files_folders_links_and_missing_paths(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("file", "folder", "link", "nothing"):
        remove(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "target"]


def test_remove_tolerates_concurrent_removal(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    removes = shutil.rmtree

    def both(path):
        removes(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(shutil, "rmtree", both)
    remove(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def hidden(error: BaseException, by: BaseException) -> BaseException:
    by.__context__ = error
    return by


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (sqlite3.OperationalError("database or disk is full"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC == 28),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), errno.ENOSPC == 28),
        (hidden(OSError(errno.ENOSPC, "no space"), RuntimeError("unexpected pos 576 vs 534")), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (sqlite3.OperationalError("database is locked"), False),
        (ValueError("the glass is full"), False),
        (hidden(OSError(errno.EIO, "broken"), RuntimeError("unexpected pos 576 vs 534")), False),
    ],
)
def test_full_disk_is_distinguished_from_other_errors(error, full):
    assert is_full(error) is full


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket"))  # the whole path may be too long
    for path, reason in (
        (tmp_path / "pipe", "it is a named pipe, not a regular file"),
        (tmp_path / "link", "it is a named pipe, not a regular file"),
        (tmp_path / "socket", "it is a socket, not a regular file"),
        (tmp_path, "it is a folder, not a regular file"),
        ("/dev/zero", "it is a device, not a regular file"),
        (tmp_path / "none", "it does not exist"),
        ("a\0b", "embedded null byte"),
    ):
        for read in (check_regular, read_json, lambda path: read_bounded(path, 10)):
            with pytest.raises(OSError, match=".") as caught:
                read(path)
            assert caught.value.strerror == reason
    server.close()
    (tmp_path / "file").write_bytes(b"[1]")
    (tmp_path / "good").symlink_to(tmp_path / "file")
    check_regular(tmp_path / "good")
    assert read_json(tmp_path / "good") == [1]


def test_no_more_than_the_limit_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"[1, 2, 3]")
    assert read_bounded(tmp_path / "file", 9) == b"[1, 2, 3]"
    with pytest.raises(OSError, match="it has more than 8 bytes"):
        read_bounded(tmp_path / "file", 8)
    monkeypatch.setattr(files, "JSON_BYTES", 8)
    with pytest.raises(OSError, match="it has more than 8 bytes"):
        read_json(tmp_path / "file")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("x", "x.onnx"), ("x.onnx", "x.onnx"), ("x.ONNX", "x.ONNX"), ("w4.5", "w4.5.onnx"), ("x.", "x..onnx"), (".x", ".x.onnx")],
)
def test_missing_ending_is_appended(tmp_path, given, expected):
    assert named_as(tmp_path / given, ".onnx") == tmp_path / expected


@pytest.mark.parametrize("given", ["x.pt2", "x.bin", "x.tar.gz"])
def test_other_ending_is_refused(tmp_path, given):
    with pytest.raises(ConfigError, match=f"^out must end in .onnx, got '.*{given}'$"):
        named_as(tmp_path / given, ".onnx")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_text_in_the_encodings_of_windows(tmp_path, encoding):
    (tmp_path / "file").write_bytes("cat\nBär\n".encode(encoding))
    assert read_unicode(tmp_path / "file", 100) == "cat\nBär\n"
    (tmp_path / "file").write_bytes(b"cat \xff")
    with pytest.raises(UnicodeDecodeError):
        read_unicode(tmp_path / "file", 100)


def holder(folder, prefix):
    """A process with a temporary folder in `folder`, which has a file; and the name of its folder."""
    code = f"""
import sys
from pathlib import Path
from pathlib import Path
from core.files import temporary_folder
with temporary_folder(Path({str(folder)!r}), {prefix!r}) as made:
    (made / "large.bin").write_bytes(bytes(1000))
    print(made.name, flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], encoding="utf-8", **pipes)
    return process, process.stdout.readline().strip()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_temporary_folder_is_removed_after_the_block(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        (folder / "a.txt").touch()
    with pytest.raises(KeyError), temporary_folder() as folder:
        raise KeyError
    with temporary_folder() as folder:
        folder.rename(tmp_path / "kept")
    assert names(tmp_path) == ["kept"]


def test_temporary_folder_of_a_killed_process_is_removed_by_the_next(tmp_path):
    """Those of live processes, and what others keep there, stay."""
    (tmp_path / "a-of-others").mkdir()
    living, dying = (holder(tmp_path, "a-") for _ in range(2))
    try:
        os.kill(dying[0].pid, signal.SIGKILL)
        dying[0].wait(10)
        assert {dying[1], living[1]} <= set(names(tmp_path))
        with temporary_folder(tmp_path, "a-"), temporary_folder(tmp_path, "b-"):
            left = names(tmp_path)
        assert dying[1] not in left
        assert f"{dying[1]}.lock" not in left
        assert (tmp_path / living[1] / "large.bin").exists()
        living[0].communicate("", timeout=10)
        assert names(tmp_path) == ["a-of-others"]
    finally:
        for process, _ in (living, dying):
            process.kill()
            process.communicate(timeout=10)


def test_output_folder_of_a_killed_process_leaves_nothing_beside_the_next(tmp_path):
    process, name = holder(tmp_path, ".out.")
    process.kill()
    process.communicate(timeout=10)
    assert name in names(tmp_path)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a.txt").touch()
    assert names(tmp_path) == ["out"]


def test_the_next_start_removes_what_killed_processes_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process, name = holder(tmp_path, "data-free-quantization-")
    process.kill()
    process.communicate(timeout=10)
    assert name in names(tmp_path)
    remove_abandoned()
    assert names(tmp_path) == []
