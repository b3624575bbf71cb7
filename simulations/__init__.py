"""Federations on one machine: the engines, baselines, reports and experiments."""
