"""Whole campaigns under seeded faults: virtual workers and a virtual clock around the real controller."""
