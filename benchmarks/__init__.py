"""Benchmarks: one for each row of the speed table, beside its bound and its rivals."""
