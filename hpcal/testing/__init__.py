"""Conformance suite for parts, hpcal's own and third parties'."""
