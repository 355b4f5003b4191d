"""Site files and what they become in Parsl."""
