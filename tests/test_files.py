"""Files that are whole or absent, whatever the system refuses and whenever."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from foreword.errors import StoreError
from foreword.files import refused, sync_folder, write_folder, write_whole

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


# -- folders -------------------------------------------------------------------------------------


def test_a_folder_is_written_with_nothing_beside(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "made", {"a": OLD, "b": NEW})
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {"a": OLD, "b": NEW}
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    write_folder(tmp_path / "made", {"a": NEW})
    assert (tmp_path / "made/a").read_bytes() == NEW


def test_a_folder_in_use_is_replaced_only_where_all_of_it_may_be(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "made", {"a": OLD, "old": OLD})
    with pytest.raises(StoreError, match="is not empty, choose another, or overwrite it"):
        write_folder(path, {"a": NEW})
    with pytest.raises(StoreError, match="'old' in it would be lost"):
        write_folder(path, {"a": NEW}, replaceable={"a"})
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {"a": OLD, "old": OLD}
    write_folder(path, {"a": NEW}, replaceable={"a", "old"})
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {"a": NEW}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "link to a folder", "dead link"])
def test_what_is_no_folder_is_left_alone(kind: str, tmp_path: Path) -> None:
    path, other = tmp_path / "made", tmp_path / "other"
    if kind == "file":
        path.write_bytes(OLD)
    else:
        path.symlink_to(other)
    if kind == "link to a folder":
        other.mkdir()
    with pytest.raises(StoreError, match="something else is there"):
        write_folder(path, {"a": NEW}, replaceable={"a"})
    assert path.is_symlink() == (kind != "file")


@pytest.mark.parametrize("broken", [1, 2])
def test_a_folder_is_whole_or_as_it_was(
    broken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses the first or the second renaming: the old folder is there again."""
    path = write_folder(tmp_path / "made", {"a": OLD})
    rename, calls = os.rename, []

    def failing(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(old, new)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(StoreError, match="the disk is full"):
        write_folder(path, {"a": NEW}, replaceable={"a"})
    assert (path / "a").read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_between_the_renamings_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the old folder and the new one were swept away."""
    path = write_folder(tmp_path / "made", {"a": OLD})
    rename = os.rename

    def interrupted(old: Path, new: Path) -> None:
        if new == path and not str(old).endswith(".old"):
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(path, {"a": NEW}, replaceable={"a"})
    assert (path / "a").read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_named_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        write_folder(tmp_path / "nul\0nul", {"a": NEW})
