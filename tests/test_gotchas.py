"""What reimplementations of kube-proxy get wrong, entry by entry, and the test that guards it.

The numbers are those of the reference's list of gotchas. Every entry that concerns what exists
names its tests; the others say why they have none. A name that is no test fails here.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import msgspec
import pytest

from pykubeproxy.config import Config
from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.render import Script, plan
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.sync.context import describe_node, localhost_serves_nodeports
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store
from tests.build import endpoint, service, slice_
from tests.fakes.dataplane import ChainDataplane

TESTS = Path(__file__).parent

ENDPOINTS = "sync/test_endpoints.py"
POLICY = "sync/test_policy.py"
ROUTES = "sync/test_routes.py"
STORE = "sync/test_store.py"
TRACKER = "sync/test_tracker.py"
PACER = "sync/test_pacer.py"
RECONCILER = "sync/test_reconciler.py"
FLOWS = "sync/test_flows.py"
OBJECTS = "model/test_objects.py"
ADDRESSES = "model/test_addresses.py"
NAMES = "iptables/test_names.py"
COMPILE = "iptables/test_compile.py"
RENDER = "iptables/test_render.py"
KERNEL = "iptables/test_kernel.py"
IPVS_COMPILE = "ipvs/test_compile.py"
IPVS_NETFILTER = "ipvs/test_netfilter.py"
IPVS_NAMES = "ipvs/test_names.py"
IPVS_MESSAGES = "ipvs/messages/test_servers.py"
IPVS_LEFTOVERS = "ipvs/test_leftovers.py"
DRAIN = "ipvs/test_drain.py"
CONVERGENCE = "properties/test_convergence.py"
IPVS_CONVERGENCE = "properties/test_ipvs_convergence.py"
CONNTRACK = "host/test_conntrack.py"
CONFIG = "test_configbuild.py"
LOOP = "test_loop.py"
FILE = "test_configfile.py"
HERE = "test_gotchas.py"

COVERED: dict[int, list[tuple[str, str]]] = {
    # objects and selection
    1: [(ENDPOINTS, "test_slices_are_merged_by_port_name_and_protocol"),
        (ROUTES, "test_ports_join_by_name_and_protocol")],
    2: [(ENDPOINTS, "test_slices_are_merged_by_port_name_and_protocol")],
    3: [(ENDPOINTS, "test_unset_conditions_have_defaults")],
    4: [(ENDPOINTS, "test_of_two_pods_with_one_address_the_living_one_counts")],
    5: [(ENDPOINTS, "test_endpoints_sort_by_text_not_by_number")],
    6: [(ROUTES, "test_when_an_external_local_policy_counts"),
        (ROUTES, "test_a_leftover_external_policy_on_a_plain_cluster_ip_has_no_effect")],
    7: [(ROUTES, "test_every_kind_of_address_counts_for_every_type"),
        (ROUTES, "test_some_services_have_no_routes")],
    8: [(POLICY, "test_local_traffic_stays_on_this_node"), (ROUTES, "test_cluster_ip_traffic"),
        (ROUTES, "test_traffic_from_outside")],
    9: [(POLICY, "test_local_traffic_stays_on_this_node")],
    10: [(POLICY, "test_cluster_traffic_goes_to_ready_endpoints_first")],
    11: [(POLICY, "test_hints_narrow_the_cluster_pool")],
    12: [(POLICY, "test_hints_narrow_the_cluster_pool")],
    13: [(POLICY, "test_hints_narrow_the_cluster_pool"),
         (OBJECTS, "test_a_missing_zone_label_is_an_empty_one")],
    14: [(POLICY, "test_hints_never_narrow_the_local_pool"),
         (COMPILE, "test_topology_keeps_the_chains_of_both_pools")],
    15: [(ROUTES, "test_internal_local_alone_needs_no_cluster_pool"),
         (ROUTES, "test_internal_local_with_a_node_port_keeps_the_cluster_pool")],
    16: [(COMPILE, "test_which_chains_a_port_has")],
    17: [(ROUTES, "test_addresses_that_count")],
    18: [(ROUTES, "test_source_ranges_of_load_balancer_addresses")],
    19: [(ROUTES, "test_source_ranges_guard_nothing_but_load_balancer_addresses"),
         (COMPILE, "test_what_the_firewall_does_not_accept_is_dropped")],
    20: [(ROUTES, "test_source_ranges_of_load_balancer_addresses"),
         (COMPILE, "test_the_firewall_lets_the_vip_in_where_a_range_holds_the_node")],
    21: [(ADDRESSES, "test_an_address_has_one_canonical_form")],
    22: [(ADDRESSES, "test_a_cidr_has_one_canonical_form")],
    23: [(ENDPOINTS, "test_an_endpoint_is_local_if_it_names_this_node"),
         (CONFIG, "test_a_setting_reaches_its_field")],
    24: [(ROUTES, "test_the_health_check_counts_ready_addresses_here")],
    25: [(ENDPOINTS, "test_slices_of_another_address_type_are_passed_over"),
         (HERE, "test_a_slice_of_another_address_type_writes_nothing")],
    26: [("watch/test_resources.py", "test_selectors"),
         ("watch/test_kubernetes_source.py", "test_a_service_that_gets_another_proxy_goes")],
    27: [(RECONCILER, "test_add_and_delete_between_passes_write_nothing"),
         (TRACKER, "test_add_and_delete_before_a_write_leave_no_trace"),
         (STORE, "test_nothing_is_left_of_a_service_whose_last_slice_goes")],
    28: [(OBJECTS, "test_values_from_the_watch_cannot_be_changed")],
    29: [(STORE, "test_only_what_differs_touches"), (STORE, "test_what_was_touched_is_taken_once")],
    30: [(STORE, "test_only_what_differs_touches"),
         (CONVERGENCE, "test_a_replay_of_everything_writes_nothing")],
    # iptables
    31: [(STORE, "test_a_deleted_slice_takes_the_causes_of_its_service_along"),
         ("sync/test_backlog.py", "test_what_was_caused_before_is_not_counted")],
    32: [(NAMES, "test_a_port_has_the_hash_that_kube_proxy_gives_it"),
         (NAMES, "test_an_endpoint_has_the_hash_that_kube_proxy_gives_it")],
    33: [(COMPILE, "test_the_mark_has_eight_digits")],
    34: [(COMPILE, "test_shared_chains_are_those_with_rules_of_many_services"),
         (COMPILE, "test_health_checks_are_let_in_whatever_the_endpoints")],
    35: [(KERNEL, "test_a_jump_is_held_if_it_is_there_in_any_spelling"),
         (COMPILE, "test_jumps_are_made_in_the_order_of_the_reference")],
    36: [(RENDER, "test_changes_become_lines"),
         (HERE, "test_built_in_chains_have_no_chain_line"),
         (CONVERGENCE, "test_a_restart_takes_over_what_it_finds")],
    37: [(RENDER, "test_every_chain_is_made_before_any_rule_and_removed_after_all"),
         (RENDER, "test_leftovers_go_even_where_living_chains_still_point_at_them")],
    38: [(RENDER, "test_the_tail_stays_last_whatever_is_added_and_removed")],
    39: [(COMPILE, "test_external_traffic_under_cluster_policy_is_always_masqueraded"),
         (COMPILE, "test_external_traffic_under_local_policy")],
    40: [(COMPILE, "test_what_the_firewall_does_not_accept_is_dropped"),
         (COMPILE, "test_the_firewall_lets_the_vip_in_where_a_range_holds_the_node")],
    41: [(COMPILE, "test_masquerading_at_the_head_of_the_internal_chain")],
    42: [(COMPILE, "test_affinity_is_remembered_where_the_address_is_translated")],
    43: [(COMPILE, "test_affinity_is_looked_up_before_any_draw")],
    44: [(COMPILE, "test_probabilities_have_ten_decimals"),
         (COMPILE, "test_one_endpoint_more_is_one_chance_less_even_among_many")],
    46: [(RECONCILER, "test_an_unknown_outcome_is_followed_by_a_read_back"),
         (RECONCILER, "test_a_read_back_that_fails_loses_no_change"),
         (CONVERGENCE, "test_with_failing_writes_it_still_converges")],
    47: [(KERNEL, "test_strays_are_service_chains_that_nobody_wants"),
         (TRACKER, "test_a_stray_that_is_wanted_again_is_not_dropped")],
    48: [(COMPILE, "test_rules_about_endpoints_lose_their_comments_in_a_large_cluster"),
         (COMPILE, "test_no_other_rule_loses_its_comment_in_a_large_cluster"),
         (ROUTES, "test_endpoints_of_any_condition_are_counted_per_port"),
         (HERE, "test_growing_large_rewrites_nobody_else")],
    49: [(KERNEL, "test_a_flush_that_is_still_going_on_is_waited_for"),
         (KERNEL, "test_a_partial_flush_is_one_after_five_seconds"),
         (KERNEL, "test_a_tool_that_cannot_tell_is_no_sign_of_a_flush"),
         (CONVERGENCE, "test_a_flush_by_somebody_else_is_repaired")],
    50: [(COMPILE, "test_invalid_packets")],
    51: [(COMPILE, "test_invalid_packets"), (COMPILE, "test_node_ports"),
         ("host/test_nfacct.py", "test_a_kernel_without_counters_is_no_error")],
    52: [(COMPILE, "test_where_node_ports_are_served"),
         (HERE, "test_when_node_ports_answer_on_localhost")],
    53: [(COMPILE, "test_the_chain_shared_with_kubelet_exists_without_a_rule_of_ours"),
         (NAMES, "test_the_chain_shared_with_kubelet_is_not_ours_to_remove")],
    54: [(HERE, "test_node_port_addresses_of_one_family_leave_the_other_open")],
    55: [(COMPILE, "test_health_checks_are_let_in_whatever_the_endpoints")],
    56: [(STORE, "test_a_listing_makes_its_kind_complete"),
         (STORE, "test_single_objects_do_not_make_a_kind_complete")],
    # ipvs
    57: [(IPVS_COMPILE, "test_a_virtual_server_stands_without_endpoints")],
    58: [(IPVS_COMPILE, "test_local_policies_fall_back_to_all_endpoints")],
    59: [(IPVS_COMPILE, "test_an_address_of_another_interface_is_served_but_not_bound")],
    60: [(IPVS_COMPILE, "test_a_cluster_ip_is_bound_even_if_another_interface_has_it")],
    61: [(IPVS_COMPILE, "test_where_node_ports_are_served")],
    62: [(IPVS_COMPILE, "test_sets_of_node_ports")],
    63: [(IPVS_NAMES, "test_names_of_sets_fit_the_kernel")],
    64: [(IPVS_COMPILE, "test_every_endpoint_here_may_meet_itself_whatever_its_condition")],
    65: [(IPVS_NETFILTER, "test_local_node_ports_leave_before_the_plain_set_marks_them")],
    66: [(IPVS_NETFILTER, "test_which_traffic_to_cluster_ips_is_masqueraded")],
    67: [(IPVS_NETFILTER,
          "test_new_connections_to_other_ports_of_bound_addresses_are_refused_last")],
    68: [(IPVS_COMPILE, "test_ranges_without_the_node_drop_what_it_sends_itself")],
    69: [(DRAIN, "test_only_tcp_with_connections_waits"),
         (DRAIN, "test_one_that_returns_leaves_and_begins_anew_later")],
    70: [(IPVS_CONVERGENCE, "test_what_others_change_is_repaired_once_it_is_suspected"),
         (IPVS_CONVERGENCE, "test_a_restart_takes_over_what_it_finds")],
    71: [(IPVS_MESSAGES, "test_a_service_is_read_without_the_flag_of_the_kernel"),
         (IPVS_CONVERGENCE, "test_a_restart_sends_nothing")],
    72: [(IPVS_LEFTOVERS, "test_excluded_servers_stay")],
    73: [(IPVS_COMPILE, "test_scheduler_flags_and_timeout")],
    74: [(IPVS_COMPILE, "test_a_load_balancer_with_source_ranges")],
    # a failure is retried soon, in this mode too, on purpose: docs/decisions/0004
    75: [(PACER, "test_failures_are_retried_with_growing_delays"),
         (IPVS_CONVERGENCE, "test_with_failing_writes_it_still_converges")],
    # daemon, health, metrics
    92: [("test_cli.py", "test_the_file_is_the_whole_configuration"),
         ("test_cli.py", "test_some_flags_win_over_the_file")],
    93: [(FILE, "test_an_odd_field_is_a_notice"),
         (FILE, "test_a_file_that_cannot_be_meant_is_a_problem")],
    94: [(CONFIG, "test_each_mode_has_its_own_periods")],
    95: [(CONFIG, "test_a_value_that_cannot_be_used_is_refused"),
         (CONFIG, "test_a_setting_reaches_its_field"),
         (FILE, "test_fields_count_as_set_or_unset"),
         ("test_flags.py", "test_flags_are_read_as_go_reads_them")],
    96: [("serve/test_health.py", "test_the_wildcard_is_both_families")],
    98: [("host/test_tuning.py", "test_the_size_of_the_table"),
         ("host/test_tuning.py", "test_a_refused_oom_score_is_tried_twice_and_no_reason_to_end"),
         ("test_daemon.py", "test_all_parameters_that_cannot_be_set_are_one_error")],
    99: [(LOOP, "test_changed_addresses_are_applied_while_running")],
    100: [(STORE, "test_a_node_that_vanishes_keeps_its_last_value"),
          ("serve/test_status.py", "test_a_deleted_node_object_changes_nothing"),
          ("serve/test_status.py", "test_a_node_that_leaves_is_not_eligible")],
    101: [("serve/test_answers.py", "test_the_code_combines_health_and_node")],
    102: [("serve/test_answers.py", "test_a_failure_tells_the_last_success")],
    103: [("serve/test_status.py", "test_health_is_about_changes_that_wait"),
          ("serve/test_status.py", "test_queueing_again_builds_nothing_new")],
    104: [("serve/test_answers.py",
           "test_a_load_balancer_gets_200_only_for_a_healthy_node_with_endpoints")],
    105: [(PACER, "test_the_pause_counts_from_the_end_of_a_pass"),
          (PACER, "test_requests_within_the_pause_are_one_and_not_lost"),
          (PACER, "test_a_retry_never_comes_before_the_pause_is_over"),
          (PACER, "test_a_pass_cancels_the_retry_before_it")],
    # noticed and applied by an orderly restart, on purpose: docs/decisions/0009
    106: [("watch/test_config_file.py", "test_the_symlink_swap_of_a_configmap_is_noticed"),
          ("watch/test_config_file.py", "test_a_changed_file_is_noticed"),
          ("test_reload.py", "test_another_configuration_asks_for_a_restart")],
    107: [(IPVS_LEFTOVERS, "test_leftovers_are_told_from_servers_of_others"),
          (IPVS_LEFTOVERS, "test_established_connections_end_first"),
          (KERNEL, "test_strays_are_service_chains_that_nobody_wants")],
    109: [("metrics/test_counting.py", "test_labelled_series_appear_with_their_first_update")],
    110: [(ROUTES, "test_ports_that_a_local_policy_leaves_empty_are_counted")],
    111: [("test_reactions.py", "test_failed_passes_are_counted"),
          ("test_reactions.py", "test_a_failed_pass_loses_the_causes_and_changes_wait_on")],
    112: [(CONFIG, "test_a_value_that_cannot_be_used_is_refused"),
          (CONFIG, "test_what_is_not_applied_is_said")],
    # conntrack
    113: [(FLOWS, "test_a_port_that_nobody_serves_is_left_out"),
          (FLOWS, "test_what_nobody_serves_is_not_looked_for")],
    114: [(FLOWS, "test_the_rule_for_one_entry")],
    115: [(ROUTES, "test_udp_flows_may_stay_on_whatever_serves")],
    116: [(FLOWS, "test_the_rule_for_one_entry"),
          (CONNTRACK, "test_node_ports_count_on_every_address")],
    117: [(CONNTRACK, "test_an_interrupted_dump_is_repeated_up_to_five_times"),
          (CONNTRACK, "test_many_destinations_are_one_dump")],
    118: [(RECONCILER, "test_a_change_of_a_service_alone_makes_no_flows_due"),
          (FLOWS, "test_a_service_change_waits_for_the_next_run")],
}  # fmt: skip

EXCLUDED: dict[int, str] = {
    45: "there is no partial sync: only what differs is written, shared chains included",
    **dict.fromkeys(range(76, 92), "nftables is not part of this version"),
    97: "--init-only asks no API, and the health server answers while a start waits, on purpose",
    108: "signals end the daemon: e2e/kernel, where there are rules to leave in place",
}


@cache
def names_in(path):
    tree = ast.parse((TESTS / path).read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_entry_is_covered_or_excluded_but_not_both():
    entries = sorted([*COVERED, *EXCLUDED])
    assert list(range(1, 119)) == entries


@pytest.mark.parametrize(
    ("path", "name"),
    sorted({reference for references in COVERED.values() for reference in references}),
)
def test_a_named_test_exists(path, name):
    assert name in names_in(path)


# --- what has no better place: it takes several parts together ---

NODE = NodeContext("node", Family.IPV4, pod_traffic=PodCIDR("10.1.0.0/16"))


class Proxy:
    def __init__(self):
        self.kernel = ChainDataplane()
        self.store = Store()
        compiler = IptablesCompiler(XtablesSettings())
        self.reconciler = Reconciler(Family.IPV4, compiler, self.kernel, clock=lambda: 0.0)

    def put(self, *objects):
        for obj in objects:
            self.store.put(obj)
        return self.reconciler.run(self.store.take(), self.store, NODE)


@pytest.mark.parametrize("address_type", ["IPv6", "FQDN"])
def test_a_slice_of_another_address_type_writes_nothing(address_type):
    proxy = Proxy()
    proxy.put(service("web"), slice_("web", endpoint("10.1.0.1")))
    other = slice_("web", endpoint("fd00::1"), name="web-2", address_type=address_type)
    assert not proxy.put(other).changed


def test_built_in_chains_have_no_chain_line():
    proxy = Proxy()
    proxy.put(service("web"), slice_("web", endpoint("10.1.0.1")))
    lines = b"".join(Script(t).text() for t in proxy.kernel.transactions).decode().splitlines()
    assert [line for line in lines if line[0] == ":" and not line.startswith(":KUBE-")] == []


def test_growing_large_rewrites_nobody_else():
    proxy = Proxy()
    small = service("small", cluster_ip="10.96.0.1")
    proxy.put(small, slice_("small", endpoint("10.1.0.1")))
    many = [endpoint(f"10.2.{n >> 8}.{n & 255}") for n in range(1001)]
    proxy.kernel.transactions.clear()
    proxy.put(service("large", cluster_ip="10.96.0.2"), slice_("large", *many))
    assert {owner.name for t in proxy.kernel.transactions for owner in t.owners} == {"large"}


@pytest.mark.parametrize(
    ("family", "addresses", "switched_on", "expected"),
    [
        pytest.param(Family.IPV4, (), True, True, id="everywhere"),
        pytest.param(Family.IPV4, (), False, False, id="switched off"),
        pytest.param(Family.IPV6, (), True, False, id="never for IPv6"),
        pytest.param(Family.IPV4, ("192.0.2.0/24",), True, False, id="loopback excluded"),
        pytest.param(Family.IPV4, ("127.0.0.0/8",), True, True, id="loopback listed"),
        pytest.param(Family.IPV4, ("127.0.0.1/32",), True, True, id="part of loopback listed"),
        pytest.param(Family.IPV4, ("0.0.0.0/0",), True, True, id="everything listed"),
        pytest.param(Family.IPV4, ("fd00::/64",), True, True, id="only the other family listed"),
        pytest.param(Family.IPV4, ("primary",), True, False, id="primary address only"),
    ],
)
def test_when_node_ports_answer_on_localhost(family, addresses, switched_on, expected):
    config = Config(nodeport_addresses=addresses, localhost_nodeports=switched_on)
    assert expected is localhost_serves_nodeports(config, family)


@pytest.mark.parametrize(
    ("addresses", "family", "expected"),
    [
        pytest.param(("192.0.2.0/24",), Family.IPV4, ("192.0.2.1",), id="the listed family"),
        pytest.param(("192.0.2.0/24",), Family.IPV6, None, id="the other family is open"),
        pytest.param(("192.0.2.0/24", "0.0.0.0/0"), Family.IPV4, None, id="everything"),
        pytest.param((), Family.IPV4, None, id="nothing given"),
        pytest.param(("198.51.100.0/24",), Family.IPV4, (), id="no such interface"),
    ],
)
def test_node_port_addresses_of_one_family_leave_the_other_open(addresses, family, expected):
    local = {Family.IPV4: ("127.0.0.1", "192.0.2.1"), Family.IPV6: ("::1", "fd00::1")}
    config = msgspec.structs.replace(Config(), nodeport_addresses=addresses)
    context = describe_node(config, "node", None, local[family], family)
    assert expected == context.nodeport_addresses


def test_a_plan_never_mixes_tables():
    proxy = Proxy()
    proxy.put(service("web"), slice_("web", endpoint("10.1.0.1")))
    tables = [
        {key.table for change in t.changes for key in (*change.put, *change.drop)}
        for t in plan([c for t in proxy.kernel.transactions for c in t.changes], None)
    ]
    assert all(len(found) == 1 for found in tables)
