"""What an engine cannot use."""

from typing import Any

import pytest

from fedbilevel import simulate
from fedbilevel.errors import BadInput


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "rya"}, "engine: got 'rya'; allowed: local, ray"),
        ({"engine": "ray", "workers": 0}, "workers: got 0"),
        ({"engine": "ray", "threads": 0}, "threads: got 0"),
        ({"ray_address": "auto"}, "ray_address: got 'auto'; allowed: nothing, since the engine is local"),
    ],
)
def test_what_an_engine_cannot_use_is_bad_input(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        simulate("quadratic", "aggitd", iterations=1, **options)
