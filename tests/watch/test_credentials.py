"""What a request needs to know of who we are."""

from __future__ import annotations

from pathlib import Path

import pytest
import urllib3

from pykubeproxy.errors import WatchDenied
from pykubeproxy.watch.credentials import Credentials, TokenFile


@pytest.mark.parametrize("state", ["missing", "empty"])
def test_a_token_file_in_rotation_leaves_the_last_token(tmp_path: Path, state: str) -> None:
    path = tmp_path / "token"
    path.write_text("good")
    token_file = TokenFile(path)
    assert token_file.read() == "good"
    if state == "missing":
        path.unlink()
    else:
        path.write_text("")
    assert token_file.read() == "good"


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_token_file_without_token_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(WatchDenied, match=str(path)):
        TokenFile(path).read()


def test_a_token_file_is_presented_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    credentials = Credentials(
        "https://one.test",
        "a token file",
        lambda _options: urllib3.PoolManager(),
        TokenFile(path).authorization,
    )
    assert credentials.authorization() == "Bearer first"
    path.write_text("second\n")
    assert credentials.authorization() == "Bearer second"
