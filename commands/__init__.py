"""The command line: the one place that wires settings, providers and the domain together."""
