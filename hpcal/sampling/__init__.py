"""Bootstrap and dynamics: a file a method, one batched integrator loop."""
