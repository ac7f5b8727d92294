"""`push` and `pull` against a stand-in for the Hub's HTTP interface."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

import foreword
from foreword.cli.main import main
from foreword.errors import (
    CorruptFile,
    DataError,
    FormatError,
    HubError,
    PrefixError,
    StoreError,
    TruncatedFile,
)
from foreword.format import encode
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer, tiny_model
from tests.hub.server import SAID, Hub, Repo

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>' to upload:DeprecationWarning"  # huggingface_hub's LFS upload
)


@pytest.fixture(scope="module")
def prefix() -> foreword.Prefix:
    tiny = foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")
    return tiny.capture("<s>Name the restaurant.")


@pytest.fixture
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty, which must be empty again."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def flipped(content: bytes) -> bytes:
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]


def test_what_is_pulled_is_what_was_pushed(hub: Hub, prefix, no_leftovers: Path) -> None:
    assert foreword.push(prefix, "me/food") == f"{hub.address}/me/food"
    (_, files) = hub.repos["me/food"].commits
    assert set(files) == {".gitattributes", "prefix.safetensors", "README.md"}
    assert files["prefix.safetensors"] == encode(prefix)
    assert foreword.pull("me/food").digest == prefix.digest
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "foreword"
    assert "foreword pull me/food" in card.text


def test_a_second_push_is_a_second_commit_and_the_first_stays(hub: Hub, prefix) -> None:
    foreword.push(prefix, "me/food")
    first = hub.repos["me/food"].sha()
    other = prefix.with_meta(family="other")
    foreword.push(other, "me/food")
    assert len(hub.repos["me/food"].commits) == 3
    assert foreword.pull("me/food").digest == other.digest
    assert foreword.pull("me/food", revision=first).digest == prefix.digest


def test_private_repositories(hub: Hub, prefix, monkeypatch: pytest.MonkeyPatch) -> None:
    foreword.push(prefix, "me/secret", private=True)
    assert hub.repos["me/secret"].private
    assert foreword.pull("me/secret").digest == prefix.digest
    foreword.push(prefix.with_meta(family="x"), "me/secret", private=True)
    foreword.push(prefix, "me/open")
    assert not hub.repos["me/open"].private
    with pytest.raises(HubError, match="exists and is public"):
        foreword.push(prefix, "me/open", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="there is no such repository, or it is private"):
        foreword.pull("me/secret")
    assert foreword.pull("me/open").digest == prefix.digest


def test_a_repository_with_something_else_is_left_alone(hub: Hub, prefix) -> None:
    hub.repos["me/model"] = Repo(commits=[{"config.json": b"{}", "README.md": b"# mine"}])
    with pytest.raises(HubError, match=r"holds something else \(config.json\)"):
        foreword.push(prefix, "me/model")
    assert len(hub.repos["me/model"].commits) == 1
    with pytest.raises(HubError, match="holds no prefix.safetensors"):
        foreword.pull("me/model")


def test_a_change_at_the_same_time_is_not_overwritten(
    hub: Hub, prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreword.push(prefix, "me/food")
    repo = hub.repos["me/food"]
    real = foreword.hub._commit

    def late(*arguments: object) -> None:
        repo.commits.append({**repo.commits[-1], "new.txt": b"x"})
        real(*arguments)

    monkeypatch.setattr(foreword.hub, "_commit", late)
    with pytest.raises(HubError, match="changed at the same time"):
        foreword.push(prefix.with_meta(family="x"), "me/food")
    assert "new.txt" in repo.commits[-1]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (flipped, CorruptFile),
        (lambda content: b"\x80\x04\x95" + content, FormatError),
        (lambda content: content[: len(content) // 2], TruncatedFile),
        (lambda content: b"", TruncatedFile),
    ],
    ids=["flipped bit", "a pickle's first bytes", "half of it", "nothing"],
)
def test_a_damaged_download_is_refused_and_nothing_stays(
    hub: Hub, prefix, no_leftovers: Path, tmp_path: Path, damage, error
) -> None:
    foreword.push(prefix, "me/food")
    hub.damage = damage
    with pytest.raises(error, match="prefix.safetensors of me/food: "):
        foreword.pull("me/food")
    store = tmp_path / "store"
    assert main(["pull", "me/food", "--store", str(store)]) == 1
    assert not store.exists()


@pytest.mark.parametrize("name", ["food", "me/", "me/a b", "../x", "me/a/b", "me/a..b", "me/é"])
def test_names_of_repositories_are_checked_before_anything_is_asked(
    hub: Hub, prefix, name: str
) -> None:
    with pytest.raises(HubError, match="expected OWNER/NAME"):
        foreword.push(prefix, name)
    with pytest.raises(HubError, match="expected OWNER/NAME"):
        foreword.pull(name)
    assert hub.asked == []


def test_what_the_hub_refuses_is_said_in_words(
    hub: Hub, prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match="cannot pull me/none: there is no such repository"):
        foreword.pull("me/none")
    with pytest.raises(HubError, match="your token may not do this .*use one that may write"):
        foreword.push(prefix, "you/food")
    foreword.push(prefix, "me/food")
    with pytest.raises(HubError, match="it has no such revision"):
        foreword.pull("me/food", revision="v9")
    with pytest.raises(HubError, match="not logged in, or the token is not valid") as caught:
        foreword.pull("me/food", token="wrong")
    assert "\x1b" in SAID
    assert str(caught.value).isprintable()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="not logged in"):
        foreword.push(prefix, "me/other")
    assert set(hub.repos) == {"me/food"}


@pytest.mark.parametrize(
    ("status", "words"),
    [(503, "answered 503 .*try again later"), (429, "try again later"), (418, "answered 418")],
)
def test_other_answers_are_named(hub: Hub, prefix, status: int, words: str) -> None:
    hub.refuse["/api/models/"] = status
    with pytest.raises(HubError, match=words):
        foreword.pull("me/food")
    with pytest.raises(HubError, match=words):
        foreword.push(prefix, "me/food")
    assert hub.repos == {}


def test_gated_repositories_are_named(hub: Hub, prefix, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.hub.server import Handler

    foreword.push(prefix, "me/food")

    def gated(self: Handler, repo: str) -> None:
        self._json({"error": "x"}, 403, {"X-Error-Code": "GatedRepo"})

    monkeypatch.setattr(Handler, "_repo", gated)
    with pytest.raises(HubError, match="access to it is restricted"):
        foreword.pull("me/food")
    with pytest.raises(HubError, match="access to it is restricted"):
        foreword.push(prefix, "me/food")


def test_a_push_that_stops_halfway_says_what_is_left(hub: Hub, prefix, no_leftovers: Path) -> None:
    hub.refuse["/commit/"] = 500
    with pytest.raises(HubError, match="The repository was made and is empty; push again"):
        foreword.push(prefix, "me/food")
    hub.refuse.clear()
    assert set(hub.repos["me/food"].commits[-1]) == {".gitattributes"}
    foreword.push(prefix, "me/food")
    assert foreword.pull("me/food").digest == prefix.digest
    hub.refuse["/commit/"] = 500
    with pytest.raises(HubError) as caught:
        foreword.push(prefix.with_meta(family="x"), "me/food")
    assert "is empty" not in str(caught.value)


def test_no_network_and_offline_mode(
    hub: Hub, prefix, monkeypatch: pytest.MonkeyPatch, no_leftovers: Path
) -> None:
    nowhere = "http://127.0.0.1:1"
    with pytest.raises(HubError, match="127.0.0.1:1 was not reached: .*Check the network"):
        foreword.pull("me/food", endpoint=nowhere)
    with pytest.raises(HubError, match="was not reached"):
        foreword.push(prefix, "me/food", endpoint=nowhere)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is on; unset HF_HUB_OFFLINE"):
        foreword.pull("me/food")
    with pytest.raises(HubError, match="offline mode is on"):
        foreword.push(prefix, "me/food")
    assert hub.asked == []


def test_what_is_no_hub_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.hub.server import Handler

    monkeypatch.setattr(Handler, "_json", lambda self, *_: self._send(200, b"<html>", {}))
    hub.repos["me/food"] = Repo()
    with pytest.raises(HubError, match="did not accept it or is not a Hub"):
        foreword.pull("me/food")


def test_an_ill_formed_prefix_or_card_reaches_no_repository(hub: Hub, prefix) -> None:
    import torch

    broken = foreword.Prefix(
        prefix.sites, tuple(key * torch.nan for key in prefix.keys), prefix.values, prefix.meta
    )
    with pytest.raises(PrefixError, match="NaN"):
        foreword.push(broken, "me/food")
    with pytest.raises(HubError, match="not a licence"):
        foreword.push(prefix, "me/food", license="my own\nlicence")
    with pytest.raises(DataError, match="expected"):
        foreword.push(prefix, "me/food", metrics={"digest": "0" * 64})
    assert hub.asked == []
    with pytest.raises(HubError, match=r'"license" must be one of \[apache-2.0, mit\]'):
        foreword.push(prefix, "me/food", license="no-such")


@pytest.fixture
def store(tmp_path: Path, prefix, monkeypatch: pytest.MonkeyPatch) -> PrefixStore:
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    PrefixStore().save("mine", prefix)
    return PrefixStore()


def test_the_verbs(hub: Hub, store: PrefixStore, prefix, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "mine", "me/food", "--private", "--license", "mit"]) == 0
    assert capfd.readouterr().out == f"{hub.address}/me/food\n"
    assert hub.repos["me/food"].private
    assert b"license: mit" in hub.repos["me/food"].commits[-1]["README.md"]
    first = hub.repos["me/food"].sha()

    assert main(["pull", "me/food"]) == 0
    out = capfd.readouterr().out
    assert "food: " in out
    assert prefix.digest[:12] in out
    assert store.load("food").digest == prefix.digest
    asked = len(hub.asked)
    assert main(["pull", "me/food"]) == 1
    assert "already in" in capfd.readouterr().err
    assert len(hub.asked) == asked
    store.save("mine", prefix.with_meta(family="x"), overwrite=True)
    assert main(["push", "mine", "me/food"]) == 0
    assert main(["pull", "me/food", "--overwrite"]) == 0
    assert store.load("food").meta.family == "x"
    assert main(["pull", "me/food", "--revision", first, "--name", "old"]) == 0
    assert store.load("old").digest == prefix.digest
    assert set(store) == {"mine", "food", "old"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("push", "nothing", "me/x"), "no prefix is called 'nothing'"),
        (("push", "mine", "x"), "expected OWNER/NAME"),
        (("push", "mine", "me/x", "--metrics", "no.json"), "cannot read the metrics in no.json"),
        (("pull", "me/none"), "there is no such repository"),
        (("pull", "me/_x"), "is not a name for a prefix"),
        (("pull", "x", "--name", "y"), "expected OWNER/NAME"),
    ],
)
def test_bad_input_gives_one_clear_error(
    hub: Hub, store: PrefixStore, capfd: pytest.CaptureFixture[str], arguments, message: str
) -> None:
    assert main(arguments) == 1
    err = " ".join(capfd.readouterr().err.split())
    assert message in err
    assert "Traceback" not in err
    assert set(store) == {"mine"}
    assert hub.repos == {}


def test_a_prefix_that_cannot_be_stored_leaves_the_old_one(
    hub: Hub, store: PrefixStore, prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreword.push(prefix.with_meta(family="x"), "me/mine")
    monkeypatch.setattr("foreword.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28)))
    assert main(["pull", "me/mine", "--overwrite"]) == 1
    assert store.load("mine").digest == prefix.digest
    assert [file.name for file in store.folder.iterdir()] == ["mine.safetensors"]
    with pytest.raises(StoreError):
        store.load("food")
