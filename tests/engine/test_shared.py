"""The contract of engines, what an app sees, and the life of a session, on a current engine: the container level's own functions.

Left out is what takes long and asks the engine for nothing new: tests that start a session each, but for those of `_LIFE`.
"""

from __future__ import annotations

from tests.container import test_dns, test_engine, test_handing, test_lifecycle, test_networks, test_programs, test_tcp, test_udp_icmp
from tests.lab.shared import looking

_LIFE = (
    test_lifecycle.test_A34_up_detached_then_down_twice_leaves_nothing,
    test_lifecycle.test_A36_ctrl_c_undoes_everything,
    test_lifecycle.test_A36_after_kill_9_of_any_part_nothing_leaks_and_down_leaves_nothing,
    test_lifecycle.test_A36_the_exec_carrier_carries_the_same,
    test_lifecycle.test_A38_a_target_that_restarts_is_found_again_and_the_app_is_not_restarted,
    test_handing.test_A38_a_handed_connection_is_reset_with_its_agent_and_the_next_goes_through_the_new_one,
    test_handing.test_the_socket_is_the_bridges_and_the_agents_alone_and_goes_with_the_session,
    test_networks.test_A28_a_session_of_the_default_network_finds_the_containers_of_one_that_it_joins_later,
)
_LONG = {"test_A10_ten_thousand_connections_in_a_row_all_answer", "test_A46_more_than_two_gigabytes_pass_on_one_flow"}


_SHARED = looking((test_engine, test_tcp, test_udp_icmp, test_dns, test_programs), without=_LONG)
globals().update(_SHARED | {test.__name__: test for test in _LIFE})


def test_enough_is_shared() -> None:
    """An import that finds nothing would pass for a success."""
    assert len(_SHARED) >= 35
