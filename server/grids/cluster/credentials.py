"""Who may join a Ray: a private one has a token of its own; of a cluster, the user's environment holds the token.

Ray listens on all interfaces, and whoever may talk to it may run code. It keeps mode and token in memory once it has
read them from the environment (`RAY_AUTH_MODE`, `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # not in its stub
from ray.exceptions import AuthenticationError

_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Have these variables in the process's environment, or not (None), while this lasts; then what was before."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _write(values)
        yield
    finally:
        _write(before)


@contextmanager
def fresh_token() -> Iterator[None]:
    """Let the Ray that is started while this lasts ask for a new token, which its processes inherit.

    This process holds the token in memory afterwards, until `read_again`.
    """
    values: dict[str, str | None] = dict.fromkeys(_VARIABLES)
    values |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with environment(values):
        read_again()
        yield


def read_again() -> None:
    """Let Ray forget mode and token and take what the environment says now; no Ray may be initialised."""
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


def metadata() -> list[tuple[str, str]]:
    """Return what a request to a cluster has to carry, by the user's environment; nothing where no token is found."""
    loader = AuthenticationTokenLoader.instance()
    try:
        return list(loader.get_token_for_http_header().items()) if loader.has_token() else []
    except AuthenticationError:
        return []


def _write(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
