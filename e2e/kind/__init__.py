"""A kind cluster whose only service proxy is pykubeproxy: ``python -m e2e.kind``.

Made from nothing, tested from pods, deleted. Wants docker, kind and kubectl in the versions that
`versions` pins; test_kind.py runs it against stand-ins for those three.
"""
