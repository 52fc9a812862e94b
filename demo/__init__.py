"""The demo: a small cluster network on this machine, the real daemon, real connections.

``python -m demo`` tells a story in which every claim is checked as it is shown. Everything
happens in network namespaces of its own, which are removed at the end, however it ends.
"""
