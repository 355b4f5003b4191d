"""Where the nodes reach the controller."""

from __future__ import annotations

import ipaddress
import socket

import psutil

from hpcal.core.errors import ConfigurationError
from hpcal.sites.schema import Site

LOOPBACK = "127.0.0.1"


def controller_addresses(site: Site) -> list[str]:
    """IP addresses of this host that the workers of a site try in turn.

    The one that the site gives, or that of its interface; 127.0.0.1 where all pools are on this
    machine; else all addresses of this host, none of which is looked up anywhere.

    Raises:
        ConfigurationError: this host has no such address or interface.
    """
    if site.address is not None:
        return [_own(site.address)]
    if site.interface is not None:
        return [_of_interface(site.interface)]
    if site.on_one_machine:
        return [LOOPBACK]
    found = [address for name in psutil.net_if_addrs() for address in _addresses(name)]
    # One node may be host and cluster at once, as on a test system: its loopback comes last.
    return [a for a in found if not _is_loopback(a)] + [LOOPBACK]


def _own(address: str) -> str:
    """The address, at which Parsl can listen only if it is one of this host's."""
    entries = [entry.address for found in psutil.net_if_addrs().values() for entry in found]
    if address not in entries:
        known = ", ".join(address for name in psutil.net_if_addrs() for address in _addresses(name))
        raise ConfigurationError(f"address {address!r} is none of this host's, which has {known}; correct it")
    return address


def _of_interface(name: str) -> str:
    found = _addresses(name)
    if not found:
        known = ", ".join(sorted(n for n in psutil.net_if_addrs() if _addresses(n)))
        raise ConfigurationError(
            f"interface {name!r}: this host has no such network interface with an address; it has {known}"
        )
    return found[0]


def _addresses(name: str) -> list[str]:
    entries = psutil.net_if_addrs().get(name, [])
    return [entry.address for entry in entries if entry.family == socket.AF_INET]


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
