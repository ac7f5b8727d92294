"""Where lm-eval keeps what it reads."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval is installed, and data sets are kept in the test's folder."""
    pytest.importorskip("lm_eval", reason="pip install 'foreword[lm-eval]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
