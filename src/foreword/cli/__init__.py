"""The command line: one file per verb, each made from a typed dataclass."""
