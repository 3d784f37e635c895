"""Features written to files."""
