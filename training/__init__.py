"""What every loop needs, whatever is learned."""
