"""Experiments over everything below: what the library costs, and what it learns."""
