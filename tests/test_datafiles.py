# SPDX-License-Identifier: LGPL-2.1-or-later
"""B30: the files that give the broker its rights say what was decided, and argue for it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lab.stage import ROOT
from sessionvirt_broker.networkconfig import BRIDGE_PREFIX

pytestmark = pytest.mark.unit

POLICY = ROOT / "polkit/org.sessionvirt.Broker1.policy"
BUS_POLICY = ROOT / "broker/org.sessionvirt.Broker1.conf"
ACTIVATION = ROOT / "broker/org.sessionvirt.Broker1.service"
UNIT = ROOT / "systemd/system/sessionvirt-broker.service"
DNSMASQ_UNIT = ROOT / "systemd/system/sessionvirt-dnsmasq@.service"
NAMES_UNIT = ROOT / "systemd/system/sessionvirt-names@.service"
NETWORKS_UNIT = ROOT / "systemd/system/sessionvirt-networks.service"
SYSUSERS = ROOT / "systemd/sysusers.d/sessionvirt.conf"
BROKER = ROOT / "broker/sessionvirt_broker"

USER = "sessionvirt-broker"
PREFIX = "org.sessionvirt.broker1."
CAPABILITIES = "CAP_NET_ADMIN CAP_DAC_OVERRIDE CAP_FOWNER CAP_SYS_RESOURCE CAP_KILL"

#: allow_any, allow_inactive, allow_active. A change here is a decision, to be made in the open.
DEFAULTS = {
    "network-attach": ("auth_admin", "auth_admin", "yes"),
    "bridge-attach": ("auth_admin", "auth_admin", "auth_admin"),
    "direct-attach": ("auth_admin", "auth_admin", "auth_admin"),
    "pci-assign": ("auth_admin", "auth_admin", "auth_admin"),
    "guest-limits": ("yes", "yes", "yes"),
    "pci-network": ("auth_admin", "auth_admin", "auth_admin"),
    "publish-port": ("auth_admin", "auth_admin", "auth_admin"),
    "publish-privileged-port": ("auth_admin", "auth_admin", "auth_admin"),
    "reclaim": ("auth_admin", "auth_admin", "auth_admin"),
    "trace": ("auth_admin", "auth_admin", "auth_admin"),
    "vm-start": ("auth_admin", "auth_admin", "auth_admin"),
}

#: Elements of policyconfig-1.dtd that are used here: what each may hold, and its attributes.
DTD = {
    "policyconfig": ({"vendor", "action"}, set()),
    "vendor": (set(), set()),
    "action": ({"description", "message", "defaults", "annotate"}, {"id"}),
    "description": (set(), set()),
    "message": (set(), set()),
    "defaults": ({"allow_any", "allow_inactive", "allow_active"}, set()),
    "allow_any": (set(), set()),
    "allow_inactive": (set(), set()),
    "allow_active": (set(), set()),
    "annotate": (set(), {"key"}),
}


# polkit


def actions() -> dict[str, ET.Element]:
    root = ET.parse(POLICY).getroot()
    return {action.get("id", "").removeprefix(PREFIX): action for action in root.iter("action")}


def test_the_policy_is_of_the_form_that_polkit_reads() -> None:
    root = ET.parse(POLICY).getroot()
    assert root.tag == "policyconfig"
    for element in root.iter():
        children, attributes = DTD[element.tag]
        assert {child.tag for child in element} <= children
        assert set(element.attrib) == attributes


def test_the_policys_defaults_are_those_that_were_decided() -> None:
    found = {}
    for name, action in actions().items():
        values = [action.findtext(f"defaults/allow_{who}") for who in ("any", "inactive", "active")]
        found[name] = tuple(values)
    assert found == DEFAULTS


def test_no_answer_is_ever_kept() -> None:
    """A kept answer covers the action whatever the details are."""
    words = {element.text for element in ET.parse(POLICY).getroot().iter() if element.text}
    assert not [word for word in words if "_keep" in word]


def test_every_action_names_its_owner_and_argues_for_its_defaults() -> None:
    text = POLICY.read_text()
    for name, action in actions().items():
        owners = [
            one.text
            for one in action.iter("annotate")
            if one.get("key") == "org.freedesktop.policykit.owner"
        ]
        assert owners == [f"unix-user:{USER}"]
        assert "org.freedesktop.policykit.imply" not in ET.tostring(action, "unicode")
        block = text.partition(f'id="{PREFIX}{name}"')[2].partition("</action>")[0]
        assert re.search(r"<defaults>\s*<!-- SECURITY: .{60,}", block, flags=re.DOTALL), name


def test_the_actions_that_the_broker_uses_are_those_that_are_shipped() -> None:
    used: set[object] = set()
    for path in BROKER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Offer":
                (action,) = [one.value for one in node.keywords if one.arg == "action"]
                words = (getattr(one, "value", None) for one in ast.walk(action))
                used |= {word for word in words if isinstance(word, str)}
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SEVERAL":
                assert isinstance(node.value, ast.Constant)
                used.add(node.value.value)
    assert used == set(actions())


def test_the_example_rule_is_an_example() -> None:
    example = ROOT / "polkit/sessionvirt.rules.example"
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = targets["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared["polkit/sessionvirt.rules.example"].startswith("share/doc/")
    assert not [target for target in shared.values() if "rules.d" in target and "polkit" in target]
    ids = re.findall(rf'"{re.escape(PREFIX)}([^"]+)"', example.read_text())
    assert set(ids) == {"network-attach"}


# The bus


def test_every_rule_of_the_bus_policy_names_its_destination() -> None:
    policies = ET.parse(BUS_POLICY).getroot().findall("policy")
    assert {tuple(sorted(policy.attrib.items())) for policy in policies} == {
        (("user", USER),),
        (("context", "default"),),
    }
    for policy in policies:
        for rule in policy:
            assert rule.tag == "allow"
            if policy.get("user") == USER:
                assert rule.attrib == {"own": "org.sessionvirt.Broker1"}
                continue
            assert rule.get("send_destination") == "org.sessionvirt.Broker1"
            member = {"send_member"} if "send_member" in rule.attrib else set()
            assert set(rule.attrib) == {"send_destination", "send_interface", "max_fds"} | member


def test_the_bus_policy_lets_through_the_descriptors_that_the_brokers_table_takes() -> None:
    """And no others: a rule without a member holds for all of its interface."""
    from sessionvirt_broker.service import MEMBERS

    rules = [
        rule for rule in ET.parse(BUS_POLICY).getroot().iter("allow") if "max_fds" in rule.attrib
    ]
    most = {
        (rule.get("send_interface"), rule.get("send_member")): int(rule.get("max_fds", ""))
        for rule in rules
    }
    assert {value for (_, member), value in most.items() if member is None} == {0}
    special = {key: value for key, value in most.items() if key[1] is not None}
    assert special == {key: member.fds for key, member in MEMBERS.items() if member.fds}


def test_the_bus_policy_opens_the_interfaces_of_the_brokers_table() -> None:
    from sessionvirt_broker.service import MEMBERS

    rules = ET.parse(BUS_POLICY).getroot().iter("allow")
    whole = [rule for rule in rules if rule.get("send_interface") and not rule.get("send_member")]
    opened = [str(rule.get("send_interface")) for rule in whole]
    assert sorted(opened) == sorted({interface for interface, _ in MEMBERS})


def test_the_activation_file_starts_what_the_unit_starts() -> None:
    lines = dict(
        line.split("=", 1) for line in ACTIVATION.read_text().splitlines() if "=" in line[:20]
    )
    assert lines["Name"] == "org.sessionvirt.Broker1"
    assert lines["SystemdService"] == UNIT.name
    assert lines["User"] == "root"
    assert f"ExecStart={lines['Exec']}" in UNIT.read_text().splitlines()
    assert " -IB " in lines["Exec"]


# systemd


def directives(path: Path) -> list[tuple[str, str]]:
    """Each directive of the section [Service], with the comment it stands under."""
    found, comment, fresh = [], "", False
    for line in path.read_text().partition("[Service]")[2].splitlines():
        if line.startswith("#"):
            comment = line if not fresh else comment + line
            fresh = True
        elif not line:
            comment, fresh = "", False
        else:
            found.append((line, comment))
            fresh = False
    return found


@pytest.mark.parametrize("unit", [UNIT, DNSMASQ_UNIT], ids=lambda path: str(path.name))
def test_every_right_of_a_unit_is_argued_for(unit: Path) -> None:
    free = ("User=", "Group=", "Type=", "Exec", "Restart", "BusName=", "NotifyAccess=")
    silent = [
        line
        for line, comment in directives(unit)
        if not line.startswith(free) and not comment.startswith("# ")
    ]
    assert silent == []
    grants = [line for line, comment in directives(unit) if "Grant:" in comment]
    assert any(line.startswith("AmbientCapabilities=") for line in grants)
    for line, comment in directives(unit):
        if line.startswith(("Ambient", "Capability", "DeviceAllow", "ReadWrite", "RuntimeD")):
            assert "Grant:" in comment, line


def test_the_unit_gives_the_five_capabilities_and_each_has_its_reason() -> None:
    lines = dict(line.split("=", 1) for line, _ in directives(UNIT))
    assert lines["User"] == lines["Group"] == USER
    assert lines["AmbientCapabilities"] == lines["CapabilityBoundingSet"] == CAPABILITIES
    text = UNIT.read_text()
    for name in CAPABILITIES.split():
        assert re.search(rf"^# Grant: {name} \w+", text, flags=re.MULTILINE), name


def test_the_program_takes_the_capabilities_that_the_unit_gives() -> None:
    from sessionvirt_broker.privileges import CAPABILITIES as OWN

    assert [f"CAP_{name.upper()}" for name in OWN] == CAPABILITIES.split()


@pytest.mark.parametrize(
    ("unit", "most"), [(UNIT, 20), (DNSMASQ_UNIT, 30), (NAMES_UNIT, 15), (NETWORKS_UNIT, 10)]
)
def test_systemd_thinks_the_units_are_confined(unit: Path, most: int, tmp_path: Path) -> None:
    """systemd-analyze(1), security --offline; 20 is 2.0."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd: ./dev test installs it")
    # An instance of a template needs a name that has one.
    copy = tmp_path / unit.name.replace("@.", "@svn_default.")
    copy.write_text(unit.read_text())
    argv = ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", "--no-pager"]
    done = subprocess.run([*argv, copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_the_unit_of_names_is_resolveds_user_without_any_right_of_its_own() -> None:
    lines = [line for line, _ in directives(NAMES_UNIT)]
    assert {"User=systemd-resolve", "CapabilityBoundingSet=", "NoNewPrivileges=yes"} <= set(lines)
    assert not [line for line in lines if line.startswith(("Ambient", "DeviceAllow", "ReadWrite"))]
    rule = (ROOT / "systemd/udev/70-sessionvirt.rules").read_text()
    for unit in (DNSMASQ_UNIT, NAMES_UNIT):
        assert unit.name.replace("@.", "@%k.") in rule


def test_no_unit_of_names_is_left_failed_by_a_bridge_that_has_gone() -> None:
    unit, _, service = NAMES_UNIT.read_text().partition("[Service]")
    assert "\nCollectMode=inactive-or-failed\n" in unit
    # Where it is ended on its way, that is no failure; systemd.service(5) says so of no oneshot.
    assert "\nType=oneshot\n" in service
    assert "\nSuccessExitStatus=SIGTERM\n" in service


def test_the_unit_of_boot_has_the_broker_started_and_may_do_nothing() -> None:
    text = NETWORKS_UNIT.read_text()
    lines = [line for line, _ in directives(NETWORKS_UNIT)]
    assert [line for line in lines if line.startswith("Exec")] == ["ExecStart=/usr/bin/true"]
    assert {"DynamicUser=yes", "CapabilityBoundingSet=", "PrivateNetwork=yes"} <= set(lines)
    assert not [line for line in lines if line.startswith(("Ambient", "DeviceAllow", "ReadWrite"))]
    for word in ("Requires", "After"):
        assert f"\n{word}={UNIT.name}\n" in text
    assert "Type=notify\n" in UNIT.read_text()  # so that After= means: the networks are up


@pytest.mark.parametrize(
    "unit", [UNIT, DNSMASQ_UNIT, NAMES_UNIT, NETWORKS_UNIT], ids=lambda path: str(path.name)
)
def test_systemd_reads_every_line_of_the_units(unit: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd: ./dev test installs it")
    copy = tmp_path / unit.name.replace("@.", "@svn_default.")
    copy.write_text(unit.read_text())
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    # What the host has not installed is not the unit's fault.
    about = [line for line in done.stderr.splitlines() if copy.name in line]
    wrong = [line for line in about if re.search(r"Unknown|Failed to parse|Invalid|ignoring", line)]
    assert wrong == [], done.stderr


def test_sysusers_makes_two_users_without_a_login() -> None:
    lines = [line.split(None, 3) for line in SYSUSERS.read_text().splitlines() if line[0] != "#"]
    assert [line[:3] for line in lines] == [["u", USER, "-"], ["u", "sessionvirt-dnsmasq", "-"]]
    for line in lines:
        assert re.fullmatch(r'"[^"]+" / /usr/sbin/nologin', line[3])


# The package


def test_every_data_file_is_shipped_and_every_shipped_file_is_there() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = table["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    here = {
        str(path.relative_to(ROOT))
        for pattern in ("broker/*", "completions/*/*", "polkit/*", "systemd/*/*")
        for path in ROOT.glob(pattern)
        if path.is_file()
    }
    assert set(shared) == here
    assert len(set(shared.values())) == len(shared)
    for source, target in shared.items():
        assert target.endswith(Path(source).name), source


#: What a privileged operation looks like in the broker's code.
PRIVILEGED = re.compile(
    r"subprocess\.|os\.exec|\.(?:json_)?cmd\(|_ip\.(?:link|addr)\(\s*\"(?:add|set|del)\"|TUNSETIFF,"
    r"|prlimit|os\.kill\("
)


def test_every_module_that_does_privileged_work_says_where() -> None:
    silent: list[str] = []
    marked: list[str] = []
    for path in sorted(BROKER.glob("*.py")):
        text = path.read_text()
        if PRIVILEGED.search(text):
            (marked if "# PRIVILEGE: " in text else silent).append(path.name)
    assert silent == []
    assert {"firewall.py", "netlink.py", "tun.py", "privileges.py", "keeper.py"} <= set(marked)


def test_no_privileged_module_takes_a_shell_or_a_callers_text() -> None:
    for path in sorted(BROKER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword):
                assert node.arg != "shell", path.name
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                assert name not in ("eval", "exec", "system", "popen", "getaddrinfo", "loads_yaml")


# firewalld


def test_the_zone_has_our_bridges_and_lets_in_what_a_network_offers() -> None:
    zone = ET.parse(ROOT / "systemd/firewalld/sessionvirt.xml").getroot()
    assert (zone.tag, zone.get("target")) == ("zone", "ACCEPT")
    names = [one.get("name", "") for one in zone.iter("interface")]
    assert names == ["svn_+"]
    assert names[0].removesuffix("+") == BRIDGE_PREFIX
    assert {one.get("name") for one in zone.iter("service")} == {"dhcp", "dhcpv6", "dns"}
    assert {one.get("value") for one in zone.iter("protocol")} == {"icmp", "ipv6-icmp"}
    # Behind these and in front of the target, for the host itself.
    (rule,) = zone.iter("rule")
    assert rule.get("priority") == "32767"
    assert [one.tag for one in rule] == ["reject"]


def test_firewalld_finds_the_zone_by_its_name() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        shared = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared["systemd/firewalld/sessionvirt.xml"] == "lib/firewalld/zones/sessionvirt.xml"
