"""Instruction tuning, round by round."""

from agents.instruct.run import instruct as instruct
