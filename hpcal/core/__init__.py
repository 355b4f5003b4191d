"""Values and seams; imports nothing else of hpcal."""
