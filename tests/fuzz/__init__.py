"""Differential fuzzers of the compiled kernels against the official protobuf classes."""
