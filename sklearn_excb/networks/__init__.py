"""Backbones, heads, student and teacher networks."""
