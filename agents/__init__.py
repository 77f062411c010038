"""Agents whose policy is a transformer."""
