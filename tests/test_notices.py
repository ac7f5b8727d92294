"""What libraries print on import is left out, and nothing else."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys

import pytest

from foreword.notices import without_notices


@pytest.mark.parametrize(
    "code",
    [
        "import foreword",
        "from foreword import *",
        "import foreword.train.run",
        "import foreword, transformers.quantizers",
    ],
)
def test_importing_the_package_prints_nothing(code: str) -> None:
    """Whichever module imports torchao first, and whoever it belongs to."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_blocks_may_lie_in_one_another(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torchao")
    with without_notices():
        with without_notices():
            logger.warning("Failed to load one")
        logger.warning("Failed to load another")
    assert caplog.records == []


def test_a_module_that_speaks_keeps_its_own_loader() -> None:
    """Only its import is quiet: what asks for its source or its data asks the loader that it had."""
    code = (
        "import foreword, importlib.machinery, torchao; "
        "own = importlib.machinery.SourceFileLoader; "
        "assert type(torchao.__loader__) is type(torchao.__spec__.loader) is own"
    )
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_lines_are_printed(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torchao")
    with without_notices():
        logger.warning("Failed to load a library that is none of ours")
        logger.warning("the weights are damaged")
    logger.warning("Failed to load it again")
    seen = [record.getMessage() for record in caplog.records]
    assert seen == ["the weights are damaged", "Failed to load it again"]
