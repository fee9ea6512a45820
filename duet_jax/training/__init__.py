"""Training: from a plan and images to checkpoints, metrics and pictures."""
