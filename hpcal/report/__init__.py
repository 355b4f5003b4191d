"""Status, lineage and the HTML report."""
