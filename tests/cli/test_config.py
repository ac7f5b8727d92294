"""Settings in a YAML file that is not one: refused with the file's name, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword.cli.main import main


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"length: !!python/object:os.system {}", "cannot be read as YAML"),
        (b"- length\n- 16\n", "expected options"),
        (b"16", "expected options, each on a line as in 'length: 16'; found 16"),
        (b"16: length", "expected options"),
    ],
)
def test_what_is_no_list_of_options(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """These ended in a traceback."""
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    assert main(["train", "rows.jsonl", "--name", "a", "--config", str(path)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"--config {path}: {said}" in told
