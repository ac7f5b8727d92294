"""pytest, with a version of vLLM that the connector refuses as untested (`scripts/vllm-next`).

`python -m tests.engine.vllm.untested 0.33 ...`, and what pytest takes.
"""

from __future__ import annotations

import sys

import pytest

from foreword.engine.vllm.geometry import Setting


def main() -> int:
    """Let one more version pass, in this process alone, and run the tests."""
    version, *arguments = sys.argv[1:]
    check = Setting.check

    def with_one_more(setting: Setting, supported: tuple[str, ...]) -> None:
        assert setting.version.startswith(version), f"this is vLLM {setting.version}"
        check(setting, (*supported, version))

    Setting.check = with_one_more  # type: ignore[method-assign]
    return int(pytest.main(arguments))


if __name__ == "__main__":
    sys.exit(main())
