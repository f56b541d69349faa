# SPDX-License-Identifier: Apache-2.0
"""The board's place in the PCI tree: which IOMMU groups and which ports make passthrough unsafe."""

from __future__ import annotations

from fmctl import platforms
from fmctl.control import discovery, isolation
from fmctl.core.acs import NONE, REQUIRED, Control
from fmctl.core.finding import Finding
from fmctl.core.inventory import Role
from fmctl.core.pci import Bdf
from fmctl.sim.kernel import SimulatedKernel
from fmctl.sim.sysfs import SimulatedBus

BOARD = platforms.load("hgx-h100-8")


def host(*, shared_group: bool = False) -> SimulatedBus:
    return SimulatedBus(BOARD, shared_group=shared_group)


def judged(bus: SimulatedBus, kernel: SimulatedKernel | None = None) -> tuple[Finding, ...]:
    return isolation.check(bus, kernel or SimulatedKernel(), discovery.discover(bus, [BOARD]))


def of(bus: SimulatedBus, role: Role) -> list[Bdf]:
    devices = discovery.discover(bus, [BOARD]).devices
    return [device.function.bdf for device in devices if device.role is role]


def group(bus: SimulatedBus, bdf: Bdf) -> int:
    (found,) = (function.iommu_group for function in bus.functions() if function.bdf == bdf)
    assert found is not None
    return found


def port(bus: SimulatedBus, bdf: Bdf) -> Bdf:
    (ports,) = (function.ports for function in bus.functions() if function.bdf == bdf)
    return ports[-1]


def test_gpus_that_share_a_group_are_named() -> None:
    bus = host()
    first, second, *_ = of(bus, Role.GPU)
    bus.join(second, group(bus, first))
    (finding,) = judged(bus)
    assert (finding.name, finding.what) == (
        "gpu-shares-group",
        f"GPUs share IOMMU group {group(bus, first)}: gpu {first}, gpu {second}",
    )
    assert "two tenants" in finding.why
    assert "ACS" in finding.fix and "pcie_acs_override would only hide it" in finding.fix


def test_a_gpu_in_the_group_of_a_switch_is_named() -> None:
    bus = host()
    gpu, switch = of(bus, Role.GPU)[0], of(bus, Role.NVSWITCH)[0]
    bus.join(gpu, group(bus, switch))
    (finding,) = judged(bus)
    assert finding.name == "gpu-in-switch-group"
    assert f"gpu {gpu}, nvswitch {switch}" in finding.what
    assert "ACS" in finding.fix


def test_a_gpu_in_the_group_of_the_memory_controller_is_named() -> None:
    bus = host()
    gpu, controller = of(bus, Role.GPU)[0], of(bus, Role.MEMORY_CONTROLLER)[0]
    bus.join(gpu, group(bus, controller))
    assert [finding.name for finding in judged(bus)] == ["gpu-in-switch-group"]


def test_all_of_the_service_vm_s_devices_may_share_a_group() -> None:
    bus = host(shared_group=True)
    assert len({group(bus, bdf) for bdf in of(bus, Role.NVSWITCH) + of(bus, Role.MEMORY_CONTROLLER)}) == 1
    assert judged(bus) == ()


def test_devices_without_a_group_are_named_where_the_host_has_an_iommu() -> None:
    bus = host()
    gpu = of(bus, Role.GPU)[0]
    bus.change(gpu, iommu_group=None)
    (finding,) = judged(bus)
    assert (finding.name, finding.what) == ("no-iommu-group", f"devices have no IOMMU group: gpu {gpu}")
    assert "firmware" in finding.fix


def test_of_a_host_without_iommu_nothing_is_said_of_groups_and_ports() -> None:
    bus, kernel = host(), SimulatedKernel()
    kernel.change(iommus=())
    for function in bus.functions():
        bus.change(function.bdf, iommu_group=None)
        bus.behave(function.bdf, access=NONE)
    assert [finding.name for finding in judged(bus, kernel)] == ["iommu-off"]


def test_a_port_that_was_cleared_is_named_with_the_command_that_sets_it() -> None:
    bus = host()
    cleared = port(bus, of(bus, Role.GPU)[0])
    bus.behave(cleared, access=NONE)
    (finding,) = judged(bus)
    assert finding.name == "acs-cleared"
    assert finding.what == (
        "ports let requests past the IOMMU (source validation, request redirect, completion redirect,"
        f" upstream forwarding off): {cleared}"
    )
    assert "IOMMU groups still look right" in finding.why and "GPUDirect" in finding.why
    assert "setpci -s PORT ECAP_ACS+6.w=1d:3d" in finding.fix


def test_ports_with_the_same_fault_are_one_finding() -> None:
    bus = host()
    first, second, third, *_ = (port(bus, gpu) for gpu in of(bus, Role.GPU))
    for bdf in (first, second):
        bus.behave(bdf, access=REQUIRED & ~Control.REQUEST_REDIRECT)
    bus.behave(third, access=REQUIRED | Control.EGRESS_CONTROL)
    redirect, egress = judged(bus)
    assert redirect.what.endswith(f"(request redirect off): {first}, {second}")
    assert egress.what.endswith(f"(egress control on): {third}")


def test_a_port_above_the_switches_counts_and_one_above_other_devices_does_not() -> None:
    bus = host()
    other = port(bus, bus.intrude(60))
    bus.behave(other, access=NONE)
    assert judged(bus) == ()
    bus.behave(port(bus, of(bus, Role.NVSWITCH)[0]), access=NONE)
    assert [finding.name for finding in judged(bus)] == ["acs-cleared"]


def test_every_level_of_ports_counts() -> None:
    for level in range(3):
        bus = host()
        gpus = of(bus, Role.GPU)[:2]
        bus.put_behind_switch(*gpus)
        assert judged(bus) == ()
        (ports,) = (function.ports for function in bus.functions() if function.bdf == gpus[1])
        bus.behave(ports[level], access=NONE)
        (finding,) = judged(bus)
        assert finding.name == "acs-cleared" and finding.what.endswith(f": {ports[level]}")


def test_a_device_of_several_functions_counts_itself() -> None:
    bus = host()
    switch = of(bus, Role.NVSWITCH)[0]
    bus.behave(switch, access=NONE)
    assert judged(bus) == ()
    bus.behave(switch, several=True)
    (finding,) = judged(bus)
    assert finding.name == "acs-cleared" and finding.what.endswith(f": {switch}")


def test_two_gpus_behind_a_switch_without_access_control_reach_each_other() -> None:
    bus = host()
    first, second, third, *_ = of(bus, Role.GPU)
    here, there = bus.put_behind_switch(first, second)
    bus.behave(here, access=None)
    (finding,) = judged(bus)
    assert finding.name == "acs-missing"
    assert finding.what == f"port {here} has no access control, and leads to devices in other IOMMU groups: {second}"
    assert "whatever the groups say" in finding.why and "ACS" in finding.fix
    bus.behave(there, access=None)
    assert [finding.what.split()[1] for finding in judged(bus)] == [str(here), str(there)]
    assert str(third) not in str(judged(bus))


def test_a_device_of_the_host_behind_the_same_switch_is_reached_too() -> None:
    bus = host()
    (downstream,) = bus.put_behind_switch(of(bus, Role.GPU)[0])
    drive = bus.intrude(60)
    (ports,) = (function.ports for function in bus.functions() if function.bdf == of(bus, Role.GPU)[0])
    bus.change(drive, ports=(*ports[:2], Bdf(0, ports[2].bus, 7, 0)))
    bus.behave(downstream, access=None)
    (finding,) = judged(bus)
    assert finding.name == "acs-missing" and finding.what.endswith(f": {drive}")


def test_a_root_port_without_access_control_leads_to_what_is_below_it_alone() -> None:
    bus = host()
    first, second, *_ = of(bus, Role.GPU)
    bus.behave(port(bus, first), access=None)
    assert judged(bus) == ()
    root = port(bus, first)
    bus.put_behind_switch(first, second)
    (finding,) = judged(bus)
    assert finding.name == "acs-missing"
    assert finding.what.startswith(f"port {root} ")
    assert finding.what.endswith(f": {second}, {first}")
    bus.remove(second)
    assert judged(bus) == ()
    drive = bus.intrude(60)
    bus.change(drive, ports=(root,))
    (finding,) = judged(bus)
    assert finding.what.endswith(f": {drive}")


def test_what_shares_a_group_may_reach_each_other_through_a_port() -> None:
    bus = host()
    first, second, *_ = of(bus, Role.GPU)
    here, _ = bus.put_behind_switch(first, second)
    bus.behave(here, access=None)
    bus.change(second, iommu_group=group(bus, first))
    assert [finding.name for finding in judged(bus)] == ["gpu-shares-group"]


def test_a_reader_without_privileges_is_told_to_be_root() -> None:
    bus = host()
    for function in bus.functions():
        bus.behave(function.bdf, shown=64)
    (finding,) = judged(bus)
    assert finding.name == "acs-unreadable"
    assert all(str(port(bus, gpu)) in finding.what for gpu in of(bus, Role.GPU))
    assert str(of(bus, Role.GPU)[0]) not in finding.what
    assert "root alone" in finding.why and finding.fix == "run this as root"


def test_a_port_that_the_kernel_cannot_read_itself_is_found() -> None:
    bus = host()
    short = port(bus, of(bus, Role.GPU)[0])
    bus.behave(short, shown=256)
    (finding,) = judged(bus)
    assert finding.what.endswith(f": {short}")
    assert "pci=nommconf" in finding.fix


def test_a_port_that_does_not_answer_or_is_gone_is_found() -> None:
    bus = host()
    silent, gone, *_ = (port(bus, gpu) for gpu in of(bus, Role.GPU))
    bus.kill(silent)
    bus.remove(gone)
    first, second = judged(bus)
    assert (first.name, second.name) == ("acs-unreadable", "acs-unreadable")
    assert str(silent) in first.what and "all ones" in first.why
    assert str(gone) in second.what and "no longer there" in second.why


def test_a_dead_gpu_takes_no_one_s_isolation() -> None:
    bus = host()
    bus.kill(of(bus, Role.GPU)[0])
    assert judged(bus) == ()
