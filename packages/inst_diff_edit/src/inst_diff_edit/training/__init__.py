"""Settings, plan, stages and the run of the training."""
