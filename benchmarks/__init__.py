"""Speed and cost, one command each."""
