"""Adapters of machine-learning potentials: training, ensembles."""
