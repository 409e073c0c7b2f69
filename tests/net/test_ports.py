"""Free ports of this machine."""

from __future__ import annotations

import socket

from streamlearn.net.ports import free_port, is_free


def test_the_same_name_gets_the_same_port_as_long_as_it_is_free() -> None:
    first = free_port("127.0.0.1", "a", ())
    assert free_port("127.0.0.1", "a", ()) == first
    assert free_port("127.0.0.1", "a", (first,)) != first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert not is_free("127.0.0.1", first)
        assert free_port("127.0.0.1", "a", ()) != first
    assert is_free("127.0.0.1", first)


def test_ports_are_below_those_of_outgoing_connections() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as outgoing:
            assert free_port("127.0.0.1", "b", ()) < outgoing.getsockname()[1]
