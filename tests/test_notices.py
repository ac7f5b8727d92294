"""What libraries print on import is left out, and nothing else."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from foreword.notices import without_notices


def test_importing_the_package_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import foreword"], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""


def test_other_lines_are_printed(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torchao")
    with without_notices():
        logger.warning("Failed to load a library that is none of ours")
        logger.warning("the weights are damaged")
    logger.warning("Failed to load it again")
    seen = [record.getMessage() for record in caplog.records]
    assert seen == ["the weights are damaged", "Failed to load it again"]
