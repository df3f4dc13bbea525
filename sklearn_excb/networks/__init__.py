"""Backbones, heads, student and teacher."""
