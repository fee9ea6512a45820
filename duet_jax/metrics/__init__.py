"""Measures: pure functions of arrays that say how good representations are."""
