"""Training: settings, plan, the stage, the run."""
