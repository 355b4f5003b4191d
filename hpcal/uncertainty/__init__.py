"""A file a metric, and the calibration of the threshold."""
