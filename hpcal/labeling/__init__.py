"""Quantum chemistry labels and the checks that they pass."""
