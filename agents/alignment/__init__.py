"""The alignment report: a model beside its reference, by rewards, judges, people, swaps, fluency and distance."""

from agents.alignment.report import AlignmentReport as AlignmentReport
from agents.alignment.report import Questions as Questions
from agents.alignment.report import align as align
