"""`--device`: what is allowed, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bench.devices.device import LocalDevice
from edgekit.bench.devices.naming import DeviceOptions, open_device
from edgekit.bench.devices.web.device import WebDevice
from edgekit.errors import UsageError

OPTIONS = DeviceOptions(lambda line: None)


def test_names_lead_to_devices() -> None:
    assert isinstance(open_device("local", OPTIONS), LocalDevice)
    web = open_device("web:https", OPTIONS)
    assert isinstance(web, WebDevice) and web.address.scheme == "https"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is not known"),
        ("phone", "is not known"),
        ("Web", "did you mean 'web'"),
        ("local:1", "takes no address"),
        ("web:", "ends in a colon"),
        ("web:8080", "not an address to serve on"),
    ],
)
def test_names_that_lead_nowhere_tell_what_is_allowed(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        open_device(name, OPTIONS)
    assert "web" in str(caught.value)


def test_the_benchmark_tool_is_for_android_alone() -> None:
    with pytest.raises(UsageError, match="for --device adb alone"):
        open_device("local", DeviceOptions(lambda line: None, benchmark_model=Path("tool")))
