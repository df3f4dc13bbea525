"""Anything a user has, as samples that can be indexed."""
