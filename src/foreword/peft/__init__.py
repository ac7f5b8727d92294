"""Checkpoints of the PEFT library: read as prefixes, and written from them. PEFT is not needed."""

from foreword.peft.config import PeftConfig
from foreword.peft.exporting import NotInPeft, export_peft
from foreword.peft.importing import import_peft, read_config

__all__ = ["NotInPeft", "PeftConfig", "export_peft", "import_peft", "read_config"]
