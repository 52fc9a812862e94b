"""Every module has its tests where one looks for them: ``a/b.py`` in ``tests/a/test_b.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

import pykubeproxy

PACKAGE = Path(pykubeproxy.__file__).parent
TESTS = Path(__file__).parent

EXCEPTIONS = {
    "errors.py": "classes without behaviour; every test of a refusal names them",
    "watch/source.py": "an interface",
}
"""Modules without tests of their own, and why."""

MODULES = sorted(
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)


@pytest.mark.parametrize("module", [m for m in MODULES if m not in EXCEPTIONS])
def test_a_module_has_its_tests(module):
    path = Path(module)
    assert (TESTS / path.parent / f"test_{path.name}").is_file()


@pytest.mark.parametrize("module", EXCEPTIONS)
def test_an_exception_is_a_module_without_tests(module):
    path = Path(module)
    assert module in MODULES
    assert not (TESTS / path.parent / f"test_{path.name}").exists()


@pytest.mark.parametrize("initial", ["__init__.py"])
def test_packages_hold_no_code(initial):
    def code(path):
        text = path.read_text()
        return "def " in text or "class " in text

    assert [str(p) for p in PACKAGE.rglob(initial) if code(p)] == []
