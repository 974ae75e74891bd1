"""A certificate for one run, signed by itself: the browser warns once, and then has what it keeps for https."""

from __future__ import annotations

import ipaddress
import ssl
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekit.errors import LoadError

_DAYS = "2"


def self_signed(host: str) -> ssl.SSLContext:
    """Return the context of a server that `host` (a name or an address) is the right name of.

    Raises:
        LoadError: there is no openssl command here, or it failed.
    """
    try:
        ipaddress.ip_address(host)
        name = f"IP:{host}"
    except ValueError:
        name = f"DNS:{host}"
    with TemporaryDirectory(prefix="edgekit-") as folder:
        key, certificate = Path(folder) / "key.pem", Path(folder) / "certificate.pem"
        command = [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", _DAYS, "-subj", "/CN=edgekit bench"),
            *("-addext", f"subjectAltName={name}"),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except FileNotFoundError as e:
            raise LoadError("--device web:https needs the openssl command; install it, or use --device web") from e
        except subprocess.SubprocessError as e:
            raise LoadError(f"--device web:https: openssl made no certificate: {e}") from e
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    return context
