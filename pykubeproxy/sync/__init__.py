"""The pure core: from objects to what is missing in the kernel.

Nothing in here reads a clock, starts a thread or does I/O: time is an argument, effects come in
as protocols (`pykubeproxy.sync.outcome`).
"""
