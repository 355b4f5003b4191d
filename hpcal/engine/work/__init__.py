"""What tasks do on a worker: one function a kind of task, inputs in, records out."""
