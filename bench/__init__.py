"""Timings of the real code on the real kernel, in network namespaces of their own."""
