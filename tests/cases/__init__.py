"""THE table: one row per algorithm and variant; every row goes through every kind of test."""

from . import asynchronous, graph, personal, server
from .case import COHORT, RANDOM, RING, Case, N

CASES = server.CASES + personal.CASES + graph.CASES + asynchronous.CASES
QUICK = tuple(case for case in CASES if case.quick)
assert len({case.name for case in CASES}) == len(CASES)
