"""Measuring trained models: predictions against labels, relaxations, dynamics, curves, figures and tables."""
