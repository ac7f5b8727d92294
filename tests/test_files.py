"""Files that are whole or absent, whatever the system refuses and whenever."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from foreword.errors import StoreError
from foreword.files import refused, sync_folder, write_whole

OLD, NEW = b"old" * 1000, b"new" * 2000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file with old contents."""
    place = tmp_path / "file.bin"
    place.write_bytes(OLD)
    return place


def only_old_is_left(place: Path) -> bool:
    """Whether the old file is untouched, and nothing lies beside it."""
    return place.read_bytes() == OLD and list(place.parent.iterdir()) == [place]


def test_it_writes_replaces_and_leaves_nothing_beside(place: Path) -> None:
    write_whole(place, NEW)
    assert place.read_bytes() == NEW
    assert list(place.parent.iterdir()) == [place]


def test_it_makes_the_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "file", NEW)
    assert (tmp_path / "a" / "b" / "file").read_bytes() == NEW


def test_the_contents_are_on_disk_before_the_name_is(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        steps.append((f"sync {kind}", os.fstat(handle).st_size if kind == "file" else None))
        fsync(handle)

    def noted_replace(old: Path, new: Path) -> None:
        steps.append(("replace", None))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_whole(place, NEW)
    assert steps == [("sync file", len(NEW)), ("replace", None), ("sync folder", None)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_named_and_loses_nothing(
    call: str, number: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StoreError, match=r"file\.bin: the disk is full.* free some space"):
        write_whole(place, NEW)
    assert only_old_is_left(place)


def test_a_disk_that_fails_is_named_and_loses_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(StoreError, match=r"cannot write .*file\.bin: Input/output error"):
        write_whole(place, NEW)
    assert only_old_is_left(place)


def test_an_interruption_leaves_the_old_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(place, NEW)
    assert only_old_is_left(place)


def test_a_folder_that_cannot_be_synced_does_not_undo_the_write(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems refuse it; the file was there, and saving said it was not."""
    fsync = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_whole(place, NEW)
    assert place.read_bytes() == NEW


def test_a_folder_that_is_gone_is_not_synced(tmp_path: Path) -> None:
    sync_folder(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    """Temporary files of mkstemp are their owner's alone, and stay so once renamed."""
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "file", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["folder", "file.bin/below", "nul\0", "n" * 300])
def test_a_path_that_cannot_be_a_file_is_named(name: str, place: Path) -> None:
    (place.parent / "folder").mkdir()
    with pytest.raises(StoreError, match=f"cannot write .*{name}"):
        write_whole(place.parent / name, NEW)
    (place.parent / "folder").rmdir()
    assert only_old_is_left(place)


def test_writers_at_once_leave_one_whole_file(place: Path) -> None:
    contents = [bytes([65 + n]) * 50_000 for n in range(8)]
    threads = [threading.Thread(target=write_whole, args=(place, c)) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.read_bytes() in contents
    assert list(place.parent.iterdir()) == [place]


def test_errors_without_words_are_still_said() -> None:
    assert str(refused(Path("x"), OSError("strange"))) == "cannot write x: strange"
