"""One step a release; the number is that of the schema it leads to."""
