"""Integrity of labelled data: what is wrong with it, and what it covers."""
