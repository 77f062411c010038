"""Several tasks in one run, over one policy."""

from agents.multitask.agent import MultiTask as MultiTask
from agents.multitask.agent import multitask as multitask
