"""hpcal: active learning for machine-learning interatomic potentials on HPC machines."""

__version__ = "0.1.0"
