"""Benchmarks: each measures the product against a ruler, in alternation, in one run (``./hotline bench``)."""
