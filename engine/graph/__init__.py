"""Stages: their definition, their context and their execution."""
