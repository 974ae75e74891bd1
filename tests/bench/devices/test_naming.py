"""`--device`: what is allowed, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.bench.devices.device import LocalDevice
from edgekit.bench.devices.naming import DeviceOptions, open_device
from edgekit.bench.devices.web import assets
from edgekit.bench.devices.web.device import WebDevice
from edgekit.cli.main import run
from edgekit.errors import UsageError
from tests.bench.tiny_for_tests import write_classifier

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


def test_the_command_refuses_an_unknown_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_classifier(tmp_path / "model.onnx")
    assert run(["bench", str(model), "--device", "phone"]) == 2
    assert "--device 'phone' is not known" in capsys.readouterr().err
    assert run(["bench", str(model), "--device", "adb"]) == 2
    assert "--benchmark-model FILE" in capsys.readouterr().err


def test_the_command_without_the_pages_runtimes_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "_NPM", tmp_path)
    assert run(["bench", str(write_classifier(tmp_path / "model.onnx")), "--device", "web"]) == 3
    assert "make web" in capsys.readouterr().err


def test_the_command_ends_with_1_when_a_file_fails_on_the_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    good = write_classifier(tmp_path / "good.onnx")
    assert run(["bench", str(good), str(broken), "--device", "local", "--budget", "0.5", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["status"] for row in rows] == ["ok", "failed"] and rows[0]["latency"] is not None
