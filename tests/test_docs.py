# SPDX-License-Identifier: LGPL-2.1-or-later
"""The documents say what is so: pages render without a warning, what they name exists, and what
exists is named.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

import sessionvirt
import sessionvirt_broker
from sessionvirt import errors
from sessionvirt.cli import status
from sessionvirt.cli.arguments import parser
from sessionvirt.model.domain import parse_domain
from sessionvirt_broker.bridges import KEYS as BRIDGE_KEYS
from sessionvirt_broker.config import BUILTIN, Configuration, PciPolicy, _Reader
from sessionvirt_broker.limits import Limits
from sessionvirt_broker.networkconfig import Mode, Network
from sessionvirt_broker.private import PrivatePolicy
from sessionvirt_broker.wire import BridgeName

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "man").glob("*.rst"))
PROSE = sorted([*ROOT.glob("*.rst"), *DOCS.rglob("*.rst"), ROOT / "tests/README.rst"])
COMMAND_PAGE = DOCS / "man/sessionvirt.1.rst"
BROKER_PAGE = DOCS / "man/sessionvirt-broker.8.rst"
CONFIGURATION_PAGE = DOCS / "man/broker.toml.5.rst"


def need(module: str) -> None:
    """Skip where a tool is missing; a run of CI has them all."""
    if find_spec(module) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{module} is not installed", pytrace=False)
        pytest.skip(f"{module} is not installed; ./dev installs it")


def run(*argv: str, cwd: Path = ROOT) -> str:
    """Run a Python program; its output, which is the failure where it fails."""
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=cwd,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("src", "broker"))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(argv)}\n{done.stdout}", pytrace=False)
    return done.stdout


def section(page: Path, title: str) -> str:
    """The text below a heading that is underlined with =."""
    found = re.search(rf"^{title}\n=+\n(.*?)(?=^[^\n]+\n=+\n|\Z)", page.read_text(), re.M | re.S)
    assert found is not None, f"{page.name} has no section {title}"
    return found[1]


def parsers() -> Iterator[argparse.ArgumentParser]:
    """The command's parser, and one for each verb."""
    top = parser()
    yield top
    yield from verbs().values()


def verbs() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


# The man pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_renders_without_a_warning(page: Path) -> None:
    need("docutils")
    need("hatchling")
    show = "import sys; from pathlib import Path; from hatch_build import render; "
    roff = run("-c", show + "print(render(Path(sys.argv[1])))", str(page))
    name, _, number = page.stem.rpartition(".")
    assert f'.TH "{name}" "{number}"' in roff


def test_every_page_is_of_this_version() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert version == sessionvirt.__version__ == sessionvirt_broker.__version__
    pages = [
        page.name for page in PAGES if f":Version: sessionvirt {version}\n" in page.read_text()
    ]
    assert pages == [page.name for page in PAGES]
    assert f'release = "{version}"\n' in (DOCS / "conf.py").read_text()
    assert f"\n{version} " in (ROOT / "NEWS.rst").read_text()


def test_a_fault_ends_the_rendering(tmp_path: Path) -> None:
    need("docutils")
    need("hatchling")
    page = tmp_path / "broken.1.rst"
    page.write_text("broken\n======\n\n``open\n")
    show = "import sys; from pathlib import Path; from hatch_build import render; "
    code = show + "\ntry: render(Path(sys.argv[1]))\nexcept Exception as e: print(type(e).__name__)"
    assert "SystemMessage" in run("-c", code, str(page))


def test_every_option_of_the_command_is_in_its_page() -> None:
    known = {
        option for each in parsers() for action in each._actions for option in action.option_strings
    }
    text = section(COMMAND_PAGE, "OPTIONS")
    written = set(re.findall(r"^(--?[a-z][a-z-]*)", text, re.M))
    written |= set(re.findall(r"^-[a-z], (--[a-z-]+)", text, re.M))
    assert written == known


def test_every_verb_of_the_command_is_in_its_page() -> None:
    assert set(re.findall(r"^\*\*([a-z]+)\*\*$", section(COMMAND_PAGE, "VERBS"), re.M)) == set(
        verbs()
    )


def test_every_exit_status_is_in_the_commands_page() -> None:
    classes = [getattr(errors, name) for name in errors.__all__]
    known = {each.exit_status for each in classes}
    known |= {status.OK, status.FAILURE, status.DENIED, status.GUEST_DIED, status.TIMEOUT}
    known |= {status.SIGNAL + number for number in (1, 2, 15)}  # those that cli/run.py handles
    written = {int(n) for n in re.findall(r"^(\d+) ", section(COMMAND_PAGE, "EXIT STATUS"), re.M)}
    assert written == known


def test_every_option_of_the_broker_is_in_its_page() -> None:
    shown = run("-c", "import sys; from sessionvirt_broker.__main__ import main; main()", "--help")
    known = set(re.findall(r"--[a-z-]+", shown))
    assert set(re.findall(r"^(--[a-z-]+)", section(BROKER_PAGE, "OPTIONS"), re.M)) == known


def test_every_action_of_polkit_is_in_the_brokers_page() -> None:
    policy = (ROOT / "polkit/org.sessionvirt.Broker1.policy").read_text()
    known = set(re.findall(r'<action id="([^"]+)"', policy))
    text = section(BROKER_PAGE, "PERMISSION")
    assert set(re.findall(r"^``(org\.sessionvirt\.[\w.-]+)``$", text, re.M)) == known


def test_every_file_that_is_installed_is_in_a_page() -> None:
    text = section(BROKER_PAGE, "FILES") + section(COMMAND_PAGE, "FILES")
    installed = [f"/usr/{target}" for target in wheel_table()["shared-data"].values()]
    assert [one for one in installed if one not in text] == []


def test_the_brokers_page_shows_the_example_rule() -> None:
    rule = (ROOT / "polkit/sessionvirt.rules.example").read_text()
    code = "\n".join(line for line in rule.splitlines() if line and not line.startswith("//"))
    shown = section(BROKER_PAGE, "PERMISSION").replace("\n    ", "\n")
    assert code in shown


# broker.toml(5)


def test_every_limit_is_in_the_page_with_its_default() -> None:
    text = section(CONFIGURATION_PAGE, "LIMITS")
    written = re.findall(r"^``(\w+)``\n    (?:.*\n    )*?.*Default: (\d+)\.", text, re.M)
    defaults = Limits()
    known = {each.name: getattr(defaults, each.name) for each in fields(Limits)}
    assert {name: int(value) for name, value in written} == known
    assert f"from 1 to {Limits.CEILING}" in text


def test_the_keys_of_a_network_are_those_that_are_read() -> None:
    written = re.findall(r"^``(\w+)``$", section(CONFIGURATION_PAGE, "NETWORKS"), re.M)
    examples = {
        "mode": '"nat"',
        "ipv4": '["10.9.0.1/24", "10.9.2.1/24"]',
        "ipv6": '"fd00::1/64"',
        "nat6": "true",
        "mtu": "1400",
        "domain": '"example"',
        "dhcp_options": '{ 42 = "10.9.0.1" }',
        "host": '{ web = { mac = "52:54:00:00:00:01", ipv4 = "10.9.0.9" } }',
        "dns": '{ printer = "10.9.0.8" }',
        "autostart": "true",
        "names_on_host": "false",
    }
    assert set(written) == set(examples)
    lines = "".join(f"{key} = {examples[key]}\n" for key in written)
    (network,) = configuration(f"[network.x]\n{lines}").networks.values()
    default = Network(network.name, ())
    for each in fields(Network):
        changed = getattr(network, each.name) != getattr(default, each.name)
        assert changed is (each.name not in ("name", "mode", "own_bridge")), each.name


def test_the_keys_of_a_bridge_are_those_that_are_read() -> None:
    written = re.findall(r"^``(\w+)``$", section(CONFIGURATION_PAGE, "BRIDGES"), re.M)
    assert written == list(BRIDGE_KEYS)


def test_the_examples_of_the_configuration_are_taken() -> None:
    text = section(CONFIGURATION_PAGE, "EXAMPLES")
    default, second, third = re.findall(r"::\n\n((?:    .*\n|\n)+)", text)
    assert dict(configuration(default).networks) == dict(BUILTIN.networks)
    other = configuration(second)
    assert set(other.networks) == {"default", "lab"}
    assert set(other.bridges) == {"br0"}
    assert other.bridges[BridgeName("br0")].permit.groups
    assert other.limits.leases_per_user == 64
    devices = configuration(third)
    assert devices.pci.deny == {"0000:00:1f.2"}
    assert devices.pci.allow == {"0000:05:00.0"}
    assert devices.limits.lock_memory_gib == 16


def test_every_mode_is_shown_with_a_figure_and_an_example_that_is_taken() -> None:
    text = (DOCS / "networking.rst").read_text()
    for mode in Mode:
        title = "NAT" if mode is Mode.NAT else mode.value.capitalize()
        found = re.search(rf"^{title}\n-+\n\n::\n\n(.*?)(?=^\w+\n-+\n)", text, re.M | re.S)
        assert found is not None, mode
        figure, _, rest = found[1].partition(".. code-block:: toml\n")
        assert "svn_" in figure
        ((name, network),) = configuration(rest).networks.items()
        assert network.mode is mode
        assert f"svn_{name}" in figure
    for page in ("networking.rst", "firewall.rst"):
        for block in blocks(DOCS / page, "toml"):
            configuration(block)


@pytest.mark.parametrize(
    ("title", "figure", "example"),
    [
        ("Private", "svn_u1000", "[private]"),
        ("Bridges of the local network", "-- br0 --", "[bridge.br0]"),
        ("VLANs", "-- br0 --", "vlans = "),
    ],
)
def test_what_is_no_mode_has_a_figure_and_an_example_too(
    title: str, figure: str, example: str
) -> None:
    text = (DOCS / "networking.rst").read_text()
    found = re.search(rf"^{title}\n[-=]+\n(.*?)(?=^[^\n]+\n[-=]{{3,}}\n|\Z)", text, re.M | re.S)
    assert found is not None
    assert figure in found[1].partition("::\n")[2]
    assert example in found[1].partition(".. code-block:: toml\n")[2]


def test_the_keys_of_private_networks_are_those_that_are_read() -> None:
    text = section(CONFIGURATION_PAGE, "PRIVATE NETWORKS")
    assert re.findall(r"^``(\w+)``$", text, re.M) == ["enabled", "ipv4"]
    assert f"``{PrivatePolicy().pool}``" in text
    policy = configuration('[private]\nenabled = false\nipv4 = "10.0.0.0/8"\n').private
    assert (policy.enabled, str(policy.pool)) == (False, "10.0.0.0/8")


def test_the_keys_of_devices_are_those_that_are_read() -> None:
    written = re.findall(r"^``(\w+)``$", section(CONFIGURATION_PAGE, "DEVICES"), re.M)
    assert written == [each.name for each in fields(PciPolicy)]
    default = re.search(r"Default: ``(\w+)``", section(CONFIGURATION_PAGE, "DEVICES"))
    assert default is not None
    assert default[1] == str(PciPolicy().weak_isolation).lower()


def configuration(indented: str) -> Configuration:
    """What the broker would read; who owns the file is tested elsewhere."""
    text = re.sub(r"^    ", "", indented, flags=re.M)
    return _Reader(Path("broker.toml"), text).configuration(tomllib.loads(text))


# Everything else


@pytest.mark.parametrize(
    "page",
    [page for page in PROSE if not page.is_relative_to(DOCS)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_page_outside_of_sphinx_has_no_fault(page: Path) -> None:
    need("docutils")
    strict = "--report=warning", "--halt=warning", "--writer=null"
    run("-m", "docutils", *strict, str(page))


def test_sphinx_builds_the_pages_without_a_warning(tmp_path: Path) -> None:
    need("sphinx")
    out, trees = str(tmp_path / "html"), str(tmp_path / "trees")
    run("-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", trees, str(DOCS), out)
    assert (tmp_path / "html/man/broker.toml.5.html").exists()


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_is_longer_than_a_window(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 110] == []


def blocks(page: Path, language: str = "") -> list[str]:
    """The literal blocks of a page, or its code blocks in a language; without their indentation."""
    start = rf"^\.\. code-block:: {language}$" if language else r"^(?!\.\.).*::$"
    found = re.findall(start + r"\n\n((?:(?:    |   ).*\n|\n)+)", page.read_text() + "\n", re.M)
    return [textwrap.dedent(block) for block in found]


def commands(page: Path, program: str) -> list[list[str]]:
    """The command lines of a page that start *program*, continued lines joined."""
    text = "\n".join(blocks(page)).replace("\\\n", " ")
    lines = (line.removeprefix("sudo ").strip() for line in text.splitlines())
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_shown_exist(page: Path) -> None:
    dev = run("dev", "--help")
    for _, command, *_rest in commands(page, "./dev"):
        assert re.search(rf"^  {command} ", dev, re.M), f"./dev {command}"
    for _, *arguments in commands(page, "sessionvirt"):
        try:
            parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"sessionvirt {shlex.join(arguments)}: is no command line", pytrace=False)


def test_definitions_that_are_shown_are_understood() -> None:
    shown = [block for page in PROSE for block in blocks(page, "xml") if "<domain" in block]
    assert shown
    for block in shown:
        parse_domain(block, strict=True)


def test_programs_that_are_shown_have_the_right_types(tmp_path: Path) -> None:
    need("mypy")
    shown = [block for page in PROSE for block in blocks(page, "python")]
    assert shown
    for number, block in enumerate(shown):
        (tmp_path / f"shown{number}.py").write_text(block)
    run("-m", "mypy", "--strict", "--python-executable", sys.executable, str(tmp_path))


def contract() -> list[str]:
    """Every member of the contract, as docs/broker-api.rst writes it."""
    lines = []
    node = ET.parse(ROOT / "broker/org.sessionvirt.Broker1.xml").getroot()
    for method in node.iter("method"):
        parts: dict[str, list[str]] = {"in": [], "out": []}
        for one in method.iter("arg"):
            parts[one.attrib["direction"]].append(f"{one.attrib['type']} {one.attrib['name']}")
        answer = f" -> {', '.join(parts['out'])}" if parts["out"] else ""
        lines.append(f"``{method.attrib['name']}({', '.join(parts['in'])}){answer}``")
    return lines


def test_the_page_of_the_interface_has_every_member() -> None:
    text = (DOCS / "broker-api.rst").read_text()
    assert re.findall(r"^``[A-Z]\w+\(.*\).*``$", text, re.M) == contract()


def test_the_page_of_the_interface_has_every_error() -> None:
    name = re.compile(r"org\.(?:sessionvirt\.Broker1|freedesktop\.DBus)\.Error\.\w+")
    known = set(name.findall((ROOT / "broker/org.sessionvirt.Broker1.xml").read_text()))
    text = (DOCS / "broker-api.rst").read_text()
    assert set(re.findall(rf"^``({name.pattern})``$", text, re.M)) == known


def test_what_hacking_names_is_there() -> None:
    text = (ROOT / "HACKING.rst").read_text()
    tops = "src|broker|completions|tests|docs|polkit|systemd|.ci"
    named = re.findall(rf"``((?:{tops})/[^`\s]*)``", text)
    assert named
    assert [one for one in named if not list(ROOT.glob(one.rstrip("/")))] == []


def test_hacking_has_every_module_of_the_broker() -> None:
    text = (ROOT / "HACKING.rst").read_text()
    modules = [path.name for path in (ROOT / "broker/sessionvirt_broker").glob("*.py")]
    assert [name for name in modules if f"``{name}``" not in text] == []


# What is shipped


def wheel_table() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    return table


def test_the_wheel_has_everything(tmp_path: Path) -> None:
    need("hatchling")
    need("docutils")
    build = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    name = run("-c", build, str(tmp_path)).strip().splitlines()[-1]
    with zipfile.ZipFile(tmp_path / name) as wheel:
        inside = set(wheel.namelist())
    wanted = set()
    for package in wheel_table()["packages"]:
        root = (ROOT / package).parent
        files = [*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("py.typed")]
        wanted |= {str(path.relative_to(root)) for path in files}
    data = "-".join(name.split("-")[:2]) + ".data/data"
    wanted |= {f"{data}/{target}" for target in wheel_table()["shared-data"].values()}
    wanted |= {f"{data}/share/man/man{page.stem[-1]}/{page.stem}" for page in PAGES}
    assert wanted - inside == set()
    assert not any(name.startswith(("tests/", "docs/", "dev")) for name in inside)
