"""The bench on another computer: a real server on loopback, the real client, edgekit itself at the other end."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from edgekit.bench.devices.ssh import SshDevice, SshHost
from edgekit.bench.latency import LatencyConfig
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig
from edgekit.errors import LoadError, UsageError
from edgekit.export.manifest import sha256_of
from tests.bench.devices.sshd_for_tests import Sshd, running_sshd
from tests.bench.tiny_for_tests import write_bundle, write_classifier

EDGEKIT = str(Path(sys.executable).with_name("edgekit"))
QUICK = LatencyConfig(max_time_s=1.0)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def device(sshd: Sshd) -> SshDevice:
    return SshDevice(sshd.host, lambda line: None, EDGEKIT, sshd.config_file)


def _left_over() -> set[Path]:
    return {path for path in Path("/tmp").glob("edgekit-bench.*") if path.stat().st_uid == os.geteuid()}


def test_the_bench_runs_there_and_its_result_comes_back(device: SshDevice, tmp_path: Path) -> None:
    before = _left_over()
    bundle = write_bundle(tmp_path / "a bundle", [write_classifier(tmp_path / "first.onnx")])
    other = write_classifier(tmp_path / "it's; $(other).onnx", seed=1)
    twin = write_classifier(tmp_path / "first.onnx", seed=2)
    config = BenchConfig((bundle, other, twin, tmp_path / "gone.onnx"), latency=QUICK, batch_size=2)
    report = device.bench(config)
    names = ["a bundle/first.onnx", other.name, f"{tmp_path.name}/first.onnx", "gone.onnx"]
    assert [row.name for row in report.rows] == names
    for row, path in zip(report.rows, (bundle / "first.onnx", other, twin), strict=False):
        assert row.status == "ok" and row.latency is not None and row.sha256 == sha256_of(path), row
        assert len(report.samples[row.name].rounds) > 3
    assert "is not there" in str(report.rows[3].failure) and str(tmp_path) in str(report.rows[3].failure)
    assert report.device == f"ssh:{device.host}" and report.baseline == names[0]
    assert report.machine.logical_cores > 0
    assert BenchReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert _left_over() == before, "nothing is left there"


def test_a_file_is_known_by_the_manifest_beside_it(device: SshDevice, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", [write_classifier(tmp_path / "first.onnx")])
    with (bundle / "first.onnx").open("ab") as file:
        file.write(b"\0")
    (row,) = device.bench(BenchConfig((bundle / "first.onnx",), latency=QUICK)).rows
    assert "its sha256 differs from the manifest's" in str(row.failure)


def test_a_device_that_goes_away_fails_what_it_measured_and_cleans_up(
    device: SshDevice, sshd: Sshd, tmp_path: Path
) -> None:
    before = _left_over()
    files = tuple(write_classifier(tmp_path / f"{name}.onnx", seed=seed) for seed, name in enumerate(("one", "two")))

    def drop_when_it_measures() -> None:
        while not any("edgekit.bench.child" in _command(child) for child in sshd.process.children(recursive=True)):
            time.sleep(0.05)
        sshd.drop()

    dropping = threading.Thread(target=drop_when_it_measures, daemon=True)
    dropping.start()
    report = device.bench(BenchConfig(files, latency=replace(QUICK, max_time_s=20.0)))
    dropping.join(5)
    assert [row.name for row in report.rows] == ["one.onnx", "two.onnx"]
    assert all(f"ssh:{device.host} went away while it measured" in str(row.failure) for row in report.rows)
    assert not report.complete
    end = time.monotonic() + 60
    while _left_over() != before and time.monotonic() < end:
        time.sleep(0.2)
    assert _left_over() == before, "the folder is removed there, though nobody listens any more"


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_computer_without_edgekit_says_how_to_help(device: SshDevice, tmp_path: Path) -> None:
    config = BenchConfig((write_classifier(tmp_path / "model.onnx"),), latency=QUICK)
    with pytest.raises(LoadError, match=r"has no command 'no-such-edgekit'.*--remote-command"):
        replace(device, command="no-such-edgekit").bench(config)
    with pytest.raises(LoadError, match="gave no bench result"):
        replace(device, command="echo").bench(config)
    with pytest.raises(LoadError, match="could not measure"):
        replace(device, command="false").bench(config)


def test_a_computer_that_lets_nobody_in_is_told_at_once(sshd: Sshd, tmp_path: Path) -> None:
    config = BenchConfig((write_classifier(tmp_path / "model.onnx"),), latency=QUICK)
    empty = tmp_path / "config"
    empty.write_text(f"IdentityFile {tmp_path}/none\nIdentitiesOnly yes\nStrictHostKeyChecking no\n"
                     f"UserKnownHostsFile {tmp_path}/known\nLogLevel ERROR\n")  # fmt: skip
    with pytest.raises(LoadError, match=r"cannot be used: .*Permission denied"):
        SshDevice(sshd.host, lambda line: None, EDGEKIT, empty).bench(config)
    closed = replace(sshd.host, port=1)
    with pytest.raises(LoadError, match=r"cannot be used: .*refused"):
        SshDevice(closed, lambda line: None, EDGEKIT, sshd.config_file).bench(config)


def test_what_needs_more_than_the_files_is_refused(device: SshDevice, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--baseline and --data cannot be used with --device ssh"):
        device.bench(BenchConfig((), baseline=tmp_path, data=tmp_path))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pi@10.0.0.7", SshHost("10.0.0.7", "pi")),
        ("jetson", SshHost("jetson")),
        ("me@[fe80::1%eth0]:2222", SshHost("fe80::1%eth0", "me", 2222)),
        ("me@host:22", SshHost("host", "me", 22)),
    ],
)
def test_hosts_are_read(text: str, found: SshHost) -> None:
    assert SshHost.parse(text) == found
    assert str(found) == text


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x", "me@-x", "a b", "me@host:0", "me@host:99999", "h;x", "$(x)"])
def test_hosts_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no computer"):
        SshHost.parse(text)
