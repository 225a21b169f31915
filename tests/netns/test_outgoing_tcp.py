"""TCP of the app, through the real wiring: what connect() says, who answers, and how flows end."""

from __future__ import annotations


def test_A01_a_flow_goes_to_the_target_network_and_is_seen_as_the_target(world) -> None:
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"
        assert app.getpeername() == ("10.77.0.9", 7000)
        assert app.getsockname()[0] == "10.77.0.3"
