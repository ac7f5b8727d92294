"""The embedded engine: rows in slots on shelves, one forward pass for all at every step."""
