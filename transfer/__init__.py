"""What is done with a trained encoder."""
