"""`faces/address.py`: a port is ours before anything is started, or one clear line says why not."""

from __future__ import annotations

import socket

import pytest

from mcpmux.config.schema import Listen
from mcpmux.errors import StartRefused
from mcpmux.faces.address import Address


def test_every_address_of_a_name_gets_the_same_free_port_and_none_listens_yet() -> None:
    address = Address(Listen(host="localhost", port=0))
    address.take()
    try:
        ports = {one.getsockname()[1] for one in address.sockets}
        assert len(ports) == 1
        assert ports.pop() > 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address.sockets[0].getsockname()[:2], timeout=5)
    finally:
        address.leave()
    assert all(one.fileno() == -1 for one in address.sockets)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_in_use_is_one_clear_line(host: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = Address(Listen(host=host, port=other.getsockname()[1]))
        with pytest.raises(StartRefused, match=rf"Cannot listen on {host}:[0-9]+: Address already in use"):
            address.take()
        assert address.sockets == []


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.1"])
def test_an_address_that_is_not_ours_is_one_clear_line(host: str) -> None:
    with pytest.raises(StartRefused, match=rf"Cannot listen on {host}:0: "):
        Address(Listen(host=host, port=0)).take()
