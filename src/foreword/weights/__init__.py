"""How weights are stored, found and made fast: what a backbone is made of before a prefix joins."""
