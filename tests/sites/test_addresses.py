"""Where the nodes reach the controller; nobody outside is asked."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from hpcal.core.errors import ConfigurationError
from hpcal.sites.addresses import controller_addresses
from hpcal.sites.schema import Site


def site(**keys: Any) -> Site:
    return Site(pools={"label": {}, "sample": {}, "train": {}}, **keys)


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(family: int, address: str) -> SimpleNamespace:
        return SimpleNamespace(family=family, address=address)

    found = {
        "lo": [entry(socket.AF_INET, "127.0.0.1"), entry(socket.AF_INET6, "::1")],
        "eth0": [entry(socket.AF_INET, "192.0.2.7")],
        "ib0": [entry(socket.AF_INET6, "fe80::1"), entry(socket.AF_INET, "10.1.0.7")],
        "down0": [],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)


def test_pools_of_this_machine_stay_on_it() -> None:
    assert controller_addresses(site()) == ["127.0.0.1"]


def test_with_a_scheduler_all_addresses_are_tried_and_the_loopback_last() -> None:
    assert controller_addresses(site(kind="slurm", walltime="01:00:00")) == [
        "192.0.2.7",
        "10.1.0.7",
        "127.0.0.1",
    ]


def test_an_interface_or_an_address_is_taken_as_given() -> None:
    assert controller_addresses(site(interface="ib0")) == ["10.1.0.7"]
    assert controller_addresses(site(interface="ib0", address="192.0.2.7")) == ["192.0.2.7"]


def test_an_address_of_another_host_is_refused_before_parsl_tries_to_listen_there() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'203\.0\.113\.9' is none of this host's, which has 127\.0"
    ):
        controller_addresses(site(address="203.0.113.9"))


@pytest.mark.parametrize("name", ["ib1", "down0"])
def test_an_interface_that_is_not_here_names_those_that_are(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"interface '{name}': .*it has eth0, ib0, lo"):
        controller_addresses(site(interface=name))
