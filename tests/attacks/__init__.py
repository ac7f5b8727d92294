"""Hostile prefix files, kept as files, and the script that makes them."""
