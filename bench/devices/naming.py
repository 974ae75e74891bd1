"""`--device`: from a name to what measures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.bench.devices.device import Device, LocalDevice, Say
from edgekit.errors import UsageError, did_you_mean

DEVICES_HELP = "local, web, ssh:USER@HOST[:PORT], adb[:SERIAL] or apple:DEVICE"
_SERIAL = re.compile(r"[\w\[][\w.:\-\[\]]{0,127}")


@dataclass(frozen=True)
class DeviceOptions:
    """What some devices need beside their name.

    Attributes:
        say: shows a line to the user.
        benchmark_model: TensorFlow Lite's benchmark tool for the phone's processor; adb alone.
        remote_command: how edgekit is called on the other computer; ssh alone.
        development_team: signs the app that runs models on the device; apple alone.
    """

    say: Say
    benchmark_model: Path | None = None
    remote_command: str | None = None
    development_team: str | None = None


def open_device(name: str, options: DeviceOptions) -> Device:
    """Return the device of a name; nothing is connected yet.

    Raises:
        UsageError: no such device, or its address makes no sense.
    """
    kind, colon, rest = name.partition(":")
    if kind not in DEVICES:
        raise UsageError(f"--device '{name}' is not known: {did_you_mean(kind, DEVICES)} Give {DEVICES_HELP}")
    if colon and not rest:
        raise UsageError(f"--device '{name}' ends in a colon; give {DEVICES_HELP}")
    if options.benchmark_model is not None and kind != "adb":
        raise UsageError("--benchmark-model is for --device adb alone")
    if options.remote_command is not None and kind != "ssh":
        raise UsageError("--remote-command is for --device ssh alone")
    if options.development_team is not None and kind != "apple":
        raise UsageError("--development-team is for --device apple alone")
    return DEVICES[kind](rest, options)


def _local(rest: str, options: DeviceOptions) -> Device:
    if rest:
        raise UsageError(f"--device local takes no address, got '{rest}'; give {DEVICES_HELP}")
    return LocalDevice()


def _web(rest: str, options: DeviceOptions) -> Device:
    from edgekit.bench.devices.web.address import WebAddress
    from edgekit.bench.devices.web.device import WebDevice

    return WebDevice(WebAddress.parse(rest), options.say)


def _ssh(rest: str, options: DeviceOptions) -> Device:
    from edgekit.bench.devices.ssh import SshDevice, SshHost

    return SshDevice(SshHost.parse(rest), options.say, options.remote_command or "edgekit")


def _adb(rest: str, options: DeviceOptions) -> Device:
    from edgekit.bench.devices.android.adb import Adb
    from edgekit.bench.devices.android.device import AdbDevice

    if rest and not _SERIAL.fullmatch(rest):
        raise UsageError(f"--device adb:{rest} is not a serial number; give one that `adb devices` lists")
    if options.benchmark_model is None:
        raise UsageError(
            "--device adb needs --benchmark-model FILE: TensorFlow Lite's benchmark tool, built for the phone's "
            "processor (tensorflow/lite/tools/benchmark, e.g. android_aarch64_benchmark_model)"
        )
    return AdbDevice(Adb(rest or None), options.benchmark_model, options.say)


def _apple(rest: str, options: DeviceOptions) -> Device:
    from edgekit.bench.devices.apple.device import AppleDevice

    if not rest:
        raise UsageError("--device apple needs a name: --device apple:DEVICE, as `xcrun devicectl list devices` shows")
    return AppleDevice(rest, options.say, options.development_team)


DEVICES: Mapping[str, Callable[[str, DeviceOptions], Device]] = {
    "local": _local,
    "web": _web,
    "ssh": _ssh,
    "adb": _adb,
    "apple": _apple,
}
