"""One file per method or job; plain data."""
