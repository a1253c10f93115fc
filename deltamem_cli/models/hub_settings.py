"""What the environment tells the hub's library: offline, endpoint, proxies, certificates. Refuses by name what can't work;
asks nobody.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from deltamem_cli.models.errors import ModelError
from deltamem_cli.reading import why_no_file

STAYS = "downloaded models work without it"
_OFFLINE = ("DMEM_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_ENDPOINT = "https://huggingface.co"
_SOCKS = ("socks5", "socks5h")


def check(repo: str) -> None:
    """Raises ModelError when the hub can't be asked for `repo` with these settings."""
    for variable in _OFFLINE:
        if os.environ.get(variable, "").lower() not in ("", "0", "no", "off", "false"):
            raise ModelError(f"{variable} is set, so {repo} can't be downloaded: unset it first; {STAYS}.")
    endpoint = _address(os.environ.get("HF_ENDPOINT", _ENDPOINT))
    if endpoint is None or endpoint.scheme not in ("http", "https"):
        raise ModelError(f"HF_ENDPOINT is not a hub's address: set it to one such as {_ENDPOINT}, or unset it.")
    for kind, address in _proxies().items():
        variable = f"{kind.upper()}_PROXY"
        proxy = _address(address)
        if proxy is None or proxy.scheme not in ("http", "https", *_SOCKS):
            raise ModelError(
                f"{variable} is not a proxy's address: set it to one such as http://host:port, or unset it."
            )
        if proxy.scheme in _SOCKS and find_spec("socksio") is None:
            raise ModelError(
                f"{variable} names a SOCKS proxy, but the Python package for them is missing: pip install socksio, or "
                "unset the variable."
            )
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and (why := why_no_file(Path(certificates))):
        raise ModelError(f"SSL_CERT_FILE names {certificates}, which {why}: fix it or unset it.")


def proxy_for(endpoint: str) -> str | None:
    """host:port of the proxy through which `endpoint` is asked; without the password that may stand in its address."""
    asked = urlsplit(endpoint)
    proxies = _proxies()
    address = proxies.get(asked.scheme) or proxies.get("all")
    if not address or proxy_bypass(asked.netloc):
        return None
    return address.rpartition("@")[2].rpartition("//")[2]


def _proxies() -> dict[str, str]:
    """By what they are for: http, https, all."""
    found = {kind: address for kind, address in getproxies().items() if kind in ("http", "https", "all")}
    return {kind: address if "://" in address else f"http://{address}" for kind, address in found.items()}


def _address(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:  # of brackets that do not close, and of the port
        return None
