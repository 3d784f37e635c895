"""Pictures of what an encoder sees, and curves of runs."""
