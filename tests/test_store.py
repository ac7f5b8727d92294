"""The store: names, what is in the folder, and a folder that refuses."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
import torch

from foreword import format as prefix_file
from foreword.errors import FormatError, NameTaken, NameUnknown, PrefixError, StoreError
from foreword.prefix import Prefix, PrefixMeta, Site
from foreword.store import PrefixStore, default_folder
from tests.attacks import make

REFUSED_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "..\\x",
    "/abs",
    "a/b",
    "C:\\x",
    ".hidden",
    "-flag",
    "_x",
    "a b",
    "a\n",
    "a\0",
    "naïve",
    "日本",
    "a" * 129,
    "a" * 200,
]


def prefix(number: float = 1.0) -> Prefix:
    """A small prefix filled with one number."""
    site = Site("attn", "decoder", 0, kv_heads=1, key_dim=2, value_dim=2)
    filled = torch.full((1, 3, 2), float(number))
    return Prefix((site,), (filled,), (filled,), PrefixMeta(backbone="tiny"))


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    """A store in a folder that does not exist yet."""
    return PrefixStore(tmp_path / "store")


def test_an_empty_store_is_empty_and_makes_no_folder(store: PrefixStore) -> None:
    assert list(store) == []
    assert "a" not in store
    assert not store.folder.exists()


def test_what_is_saved_is_listed_and_loaded(store: PrefixStore) -> None:
    place = store.save("b", prefix(2))
    store.save("a.v1-x_Y", prefix(1))
    assert place == store.folder / "b.safetensors"
    assert list(store) == ["a.v1-x_Y", "b"]
    assert "b" in store
    assert store.load("b").digest == prefix(2).digest
    assert store.load("a.v1-x_Y").digest == prefix(1).digest


@pytest.mark.parametrize("name", ["a" * 128, "0", "a..b", "x.safetensors", "CON"])
def test_odd_but_plain_names_are_allowed(name: str, store: PrefixStore) -> None:
    store.save(name, prefix(3))
    assert list(store) == [name]
    assert store.load(name).digest == prefix(3).digest


@pytest.mark.parametrize("name", ["one + two", "0.5*one", "a - b", "-a", "a[:8]", "(a)"])
def test_an_expression_is_told_from_a_wrong_name(name: str, store: PrefixStore) -> None:
    with pytest.raises(StoreError, match=r"digit\. Expressions .* here; foreword\.compose makes"):
        store.path(name)
    with pytest.raises(StoreError, match="starting with a letter or digit$"):
        store.path("../a b")


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_names_that_could_lead_elsewhere_are_refused(name: str, store: PrefixStore) -> None:
    store.save("good", prefix())
    (store.folder.parent / "x.safetensors").write_bytes(make.good())
    for act in (store.path, store.load, store.remove, store.__contains__):
        with pytest.raises(StoreError, match="is not a name for a prefix; expected 1 to 128") as e:
            act(name)
        assert repr(name) in str(e.value)
    with pytest.raises(StoreError, match="is not a name for a prefix"):
        store.save(name, prefix(), overwrite=True)
    assert sorted(f.name for f in store.folder.parent.rglob("*")) == [
        "good.safetensors",
        "store",
        "x.safetensors",
    ]


def test_a_taken_name_is_kept_until_overwriting_is_asked_for(store: PrefixStore) -> None:
    store.save("a", prefix(1))
    with pytest.raises(NameTaken, match=r"a prefix called 'a' is already in .*--overwrite"):
        store.save("a", prefix(2))
    assert store.load("a").digest == prefix(1).digest
    store.save("a", prefix(2), overwrite=True)
    assert store.load("a").digest == prefix(2).digest
    assert list(store) == ["a"]


def outcomes(savers: list[Callable[[], object]]) -> list[BaseException | None]:
    """What savers raise that run at once."""
    found: list[BaseException | None] = [None] * len(savers)

    def run(index: int, save: Callable[[], object]) -> None:
        try:
            save()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(savers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("has_links", [True, False])
def test_of_many_who_take_a_name_at_once_one_has_it(
    store: PrefixStore, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """Each saw that the name was free, and the last one's file was there in the end."""
    all_have_looked = threading.Barrier(8)
    encode = prefix_file.encode

    def encoded(one: Prefix) -> bytes:
        all_have_looked.wait(60)
        return encode(one)

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(prefix_file, "encode", encoded)
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    savers = [lambda n=n: store.save("a", prefix(n)) for n in range(8)]
    found = outcomes(savers)
    (winner,) = (n for n, error in enumerate(found) if error is None)
    assert store.load("a").digest == prefix(winner).digest
    assert {type(error) for error in found} == {type(None), NameTaken}
    assert [path.name for path in store.folder.iterdir()] == ["a.safetensors"]


def test_a_file_that_is_put_there_by_hand_meanwhile_is_kept(store: PrefixStore) -> None:
    def write() -> None:
        with store.writing("a") as file:
            file.write(prefix_file.encode(prefix(1)))
            prefix_file.save(prefix(2), store.path("a"))

    with pytest.raises(NameTaken, match="a prefix called 'a' is already in"):
        write()
    assert store.load("a").digest == prefix(2).digest
    assert [path.name for path in store.folder.iterdir()] == ["a.safetensors"]


def test_what_a_killed_writer_left_is_cleared_and_no_living_ones(store: PrefixStore) -> None:
    """It stayed for ever; clearing all of them would have taken a living writer's file away."""
    store.clear_leftovers()  # there is no folder yet
    store.save("a", prefix(1))
    child = os.fork()
    if child == 0:  # a process of its own, ended in the middle of an upload
        with store.writing("b") as file:
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = store.folder.glob(".b.safetensors.*")
    assert left.read_bytes() == b"half of it"
    other = store.folder / ".notes.0123456789abcdef"
    other.write_text("not of a prefix")
    with store.writing("c") as file:
        file.write(prefix_file.encode(prefix(3)))
        store.clear_leftovers()
        assert not left.exists()
    assert list(store) == ["a", "c"]
    assert store.load("c").digest == prefix(3).digest
    assert sorted(store.folder.iterdir()) == [other, store.path("a"), store.path("c")]


def test_a_prefix_that_cannot_be_saved_does_not_replace_one(store: PrefixStore) -> None:
    store.save("a", prefix(1))
    with pytest.raises(PrefixError, match="NaN"):
        store.save("a", prefix(float("nan")), overwrite=True)
    assert store.load("a").digest == prefix(1).digest


def test_a_stamp_tells_a_file_from_the_one_that_replaces_it(store: PrefixStore) -> None:
    store.save("a", prefix(1))
    before = store.stamp("a")
    assert store.stamp("a") == before
    store.save("a", prefix(2), overwrite=True)
    assert store.stamp("a") != before
    for name in ("b", "../a"):
        with pytest.raises(StoreError, match=r"no prefix is called 'b'|is not a name"):
            store.stamp(name)


def test_removing_removes_one(store: PrefixStore) -> None:
    store.save("a", prefix(1))
    store.save("b", prefix(2))
    store.remove("a")
    assert list(store) == ["b"]
    assert [f.name for f in store.folder.iterdir()] == ["b.safetensors"]


def test_an_unknown_name_is_answered_with_what_is_there(store: PrefixStore) -> None:
    for act in (store.load, store.remove):
        with pytest.raises(StoreError, match=r"no prefix is called 'c' in .*store \(it is empty\)"):
            act("c")
    store.save("b", prefix())
    store.save("a", prefix())
    for act in (store.load, store.remove):
        with pytest.raises(StoreError, match=r"no prefix is called 'c' in .*store \(a, b\)"):
            act("c")


def test_only_plainly_named_files_are_listed(store: PrefixStore) -> None:
    """A folder with a prefix's name was listed, and then could not be loaded."""
    store.save("a", prefix())
    (store.folder / "folder.safetensors").mkdir()
    (store.folder / "notes.txt").write_text("not a prefix")
    (store.folder / ".a.safetensors.0123").write_bytes(b"what a killed process left")
    (store.folder / ".hidden.safetensors").write_bytes(make.good())
    (store.folder / "two words.safetensors").write_bytes(make.good())
    assert list(store) == ["a"]
    assert "folder" not in store
    with pytest.raises(StoreError, match="no prefix is called 'folder'"):
        store.load("folder")


def test_a_file_that_is_no_prefix_says_so_and_stays(store: PrefixStore) -> None:
    store.save("a", prefix())
    store.path("weights").write_bytes(make.peft_checkpoint())
    assert list(store) == ["a", "weights"]
    with pytest.raises(FormatError, match=r"weights\.safetensors: it is not a Foreword prefix"):
        store.load("weights")
    with pytest.raises(StoreError, match="already in"):
        store.save("weights", prefix())
    assert store.load("a").digest == prefix().digest


def test_a_store_that_is_a_file_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = PrefixStore(tmp_path / "file")
    with pytest.raises(StoreError, match=r"cannot read the folder .*file: Not a directory"):
        list(store)
    with pytest.raises(StoreError, match=r"cannot write .*a\.safetensors: "):
        store.save("a", prefix())
    with pytest.raises(StoreError, match=r"cannot delete .*a\.safetensors: Not a directory"):
        store.remove("a")
    assert "a" not in store


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_refuses(store: PrefixStore) -> None:
    store.save("a", prefix())
    store.folder.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"cannot write .*b\.safetensors: Permission denied"):
            store.save("b", prefix())
        with pytest.raises(StoreError, match=r"cannot delete .*a\.safetensors: Permission denied"):
            store.remove("a")
        assert list(store) == ["a"]
    finally:
        store.folder.chmod(0o700)


def test_a_read_only_disk_refuses(store: PrefixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save("a", prefix())

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", read_only)
    monkeypatch.setattr(os, "link", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(StoreError, match=r"cannot write .*b\.safetensors: Read-only file system"):
        store.save("b", prefix())
    with pytest.raises(StoreError, match=r"cannot delete .*a\.safetensors: Read-only file system"):
        store.remove("a")
    assert list(store) == ["a"]


def test_a_folder_that_cannot_be_read_is_named(
    store: PrefixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    for act in (lambda: list(store), lambda: store.load("a")):
        with pytest.raises(StoreError, match=r"cannot read the folder .*store: Permission denied"):
            act()


@pytest.mark.parametrize("folder", ["nul\0", "n" * 5000])
def test_a_folder_that_cannot_exist_is_a_store_error(folder: str) -> None:
    store = PrefixStore(folder)
    assert "a" not in store
    with pytest.raises(StoreError, match="cannot read the folder"):
        list(store)
    with pytest.raises(StoreError, match="cannot write"):
        store.save("a", prefix())
    with pytest.raises(StoreError, match="cannot delete"):
        store.remove("a")


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "mine"))
    PrefixStore().save("a", prefix())
    assert (tmp_path / "mine" / "a.safetensors").is_file()
    assert PrefixStore(tmp_path / "other").folder == tmp_path / "other"


@pytest.mark.parametrize("value", [None, ""])
def test_without_it_the_users_data_folder_is_used(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FOREWORD_STORE", raising=False)
    if value is not None:
        monkeypatch.setenv("FOREWORD_STORE", value)
    assert default_folder() == Path(platformdirs.user_data_dir("foreword")) / "prefixes"


def test_an_unknown_name_is_answered_with_some_of_the_known_ones(store: PrefixStore) -> None:
    store.folder.mkdir()
    for number in range(12):
        store.path(f"p{number:02}").write_bytes(b"")
    with pytest.raises(StoreError, match=r"p00, .*, p09 and 2 more\)"):
        store.load("none")


def test_a_name_like_one_that_is_there_is_asked_about(store: PrefixStore) -> None:
    """Among many names, the one that was meant is not even in the list."""
    for name in ("Sentiment", "restaurants", "restaurants-2", *(f"a{n}" for n in range(20))):
        store.save(name, prefix())
    near = r"and 13 more\); did you mean 'restaurants' or 'restaurants-2'\?$"
    for act in (store.load, store.outline, store.remove):
        with pytest.raises(NameUnknown, match=near):
            act("restaurant")
    with pytest.raises(NameUnknown, match=r"did you mean 'Sentiment'\?$"):
        store.load("sentiment")
    with pytest.raises(NameUnknown, match=r"and 13 more\)$"):
        store.load("qqqq")
