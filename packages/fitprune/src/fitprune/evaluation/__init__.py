"""Settings, answers, scores and the run of the evaluation; the demo."""
