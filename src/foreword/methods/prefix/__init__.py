"""Prefix tuning: starts, parameterisations, and what of them is trained."""
