"""Training an encoder with labels."""
