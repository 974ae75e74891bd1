"""The files that the page is made of, by the name they are served under; nothing else can be asked for.

The runtimes come from npm when the project is built, `make web`, and are kept compressed beside this file.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from edgekit.atomic import write_bytes
from edgekit.errors import LoadError
from edgekit.exits import run_command

_HERE = Path(__file__).parent
_NPM = _HERE / "npm-runtimes"
_JS = "text/javascript; charset=utf-8"
_WASM = "application/wasm"
PAGE: Mapping[str, str] = {
    "": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": _JS,
    "models.js": _JS,
    "view.js": _JS,
    "wire.js": _JS,
}
"""What is ours; "" is the page itself."""
_ORT, _LITERT = "onnxruntime-web/dist", "@litertjs/core"
RUNTIMES: Mapping[str, tuple[str, str]] = {
    "ort.js": (f"{_ORT}/ort.wasm.bundle.min.mjs", _JS),
    "ort.wasm": (f"{_ORT}/ort-wasm-simd-threaded.wasm", _WASM),
    "ort-gpu.js": (f"{_ORT}/ort.webgpu.bundle.min.mjs", _JS),
    "ort-gpu.wasm": (f"{_ORT}/ort-wasm-simd-threaded.asyncify.wasm", _WASM),
    "litert.js": (f"{_LITERT}/dist/index.js", _JS),
    "wasm-utils.js": ("@litertjs/wasm-utils/dist/index.js", _JS),
    **{
        f"litert_wasm_{build}.{kind}": (f"{_LITERT}/wasm/litert_wasm_{build}.{kind}", mime)
        for build in ("internal", "compat_internal", "jspi_internal")
        for kind, mime in (("js", _JS), ("wasm", _WASM))
    },
}
"""Served name -> (path in node_modules, type). "jspi" is the build of LiteRT.js that uses WebGPU."""
_PACKAGES: Mapping[str, str] = {"onnxruntime-web": "onnx", "@litertjs/core": "tflite"}
_VERSIONS_FILE = "versions.json"


@dataclass(frozen=True)
class Asset:
    """A file to serve.

    Attributes:
        content: its bytes, compressed where `gzipped`.
        media_type: for the Content-Type header.
        gzipped: whether `content` is gzip.
    """

    content: bytes
    media_type: str
    gzipped: bool


def read_assets() -> dict[str, Asset]:
    """Return everything that the page is made of.

    Raises:
        LoadError: the runtimes are not here.
    """
    missing = [name for name in (*(f"{n}.gz" for n in RUNTIMES), _VERSIONS_FILE) if not (_NPM / name).is_file()]
    if missing:
        raise LoadError(
            f"the page's runtimes are not here ({len(missing)} files, e.g. {missing[0]}): run `make web` in a checkout "
            "of edgekit, once, with npm and a network"
        )
    found = {
        name: Asset((_HERE / (name or "index.html")).read_bytes(), media_type, gzipped=False)
        for name, media_type in PAGE.items()
    }
    for name, (_, media_type) in RUNTIMES.items():
        found[name] = Asset((_NPM / f"{name}.gz").read_bytes(), media_type, gzipped=True)
    return found


def runtime_versions() -> dict[str, str]:
    """Return the version of the runtime of each format."""
    versions: dict[str, str] = json.loads((_NPM / _VERSIONS_FILE).read_text(encoding="utf-8"))
    return versions


def collect(node_modules: Path) -> int:
    """Compress the runtimes of an npm folder into this package; return their bytes.

    Raises:
        LoadError: a file is not there.
    """
    paths = {name: node_modules / source for name, (source, _) in RUNTIMES.items()}
    for path in paths.values():
        if not path.is_file():
            raise LoadError(f"{path} is not there; run npm ci in the folder above node_modules")
    _NPM.mkdir(exist_ok=True)
    total = 0
    for name, path in paths.items():
        content = path.read_bytes()
        if name == "litert.js":  # its one bare import, which a browser cannot resolve
            content = content.replace(b'"@litertjs/wasm-utils"', b'"./wasm-utils.js"')
        packed = gzip.compress(content, 9, mtime=0)
        write_bytes(_NPM / f"{name}.gz", packed)
        total += len(packed)
    versions = {}
    for package, form in _PACKAGES.items():
        versions[form] = json.loads((node_modules / package / "package.json").read_text(encoding="utf-8"))["version"]
    write_bytes(_NPM / _VERSIONS_FILE, json.dumps(versions).encode())
    return total


@click.command()
@click.argument("node_modules", type=click.Path(path_type=Path))
def main(node_modules: Path) -> None:
    """Take the runtimes of the bench page from the npm folder NODE_MODULES."""
    click.echo(f"{collect(node_modules) / 1e6:.1f} MB of runtimes for the bench page")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], "python -m edgekit.bench.devices.web.assets"))
