"""CNN baselines: training, tasks, heat maps and pages."""
