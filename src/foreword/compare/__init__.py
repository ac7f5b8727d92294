"""Methods compared on the user's own rows: quality, parameters, time, memory, forgetting."""
