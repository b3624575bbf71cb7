"""Backbones: pre-trained models as ordered lists of stages, and where they come from."""
