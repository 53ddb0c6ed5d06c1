"""`python -m tests.natlab`: the laboratory from the command line. README.md has examples."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click
from tests.natlab import lifecycle, namespaces, plan
from tests.natlab.impairment import OPTIONS, Impairment
from tests.natlab.keeper import ROOT
from tests.natlab.kinds import KINDS
from tests.natlab.lab import Lab
from tests.natlab.namespaces import NatlabError
from tests.natlab.support import kernel_support
from tests.natlab.topology import SERVER
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable

SELF_TEST = ("test_natlab.py", "test_natlab_punch.py", "test_natlab_links.py")
REFUSED = 2
"""Exit code when natlab itself refused; `exec` gives the command's own."""


class Refusing(click.Group):
    """Says in one line why something is refused."""

    @override
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NatlabError as error:
            click.echo(f"natlab: {error}", err=True)
            ctx.exit(REFUSED)


@click.group(cls=Refusing, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """A NAT laboratory made of network namespaces."""

    def end(number: int, _frame: object) -> NoReturn:  # so that what is half built is taken down
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


NAME = click.option("--name", envvar="NATLAB", default="default", help="Of the lab.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def link_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each thing a link can do."""
    for option in reversed(OPTIONS):
        command = click.option(f"--{option}", help="Of every access link.")(command)
    return command


@cli.command(epilog="Kinds: " + "; ".join(f"{name}: {kind.words}" for name, kind in KINDS.items()))
@NAME
@click.option("--a", default="port-restricted", metavar="KIND", help="Place of alice.")
@click.option("--b", default="port-restricted", metavar="KIND", help="Place of bob.")
@click.option("--carol", is_flag=True, help="Add carol, a second public host.")
@click.option("--host", "hosts", multiple=True, metavar="NAME=KIND", help="Add a host.")
@link_options
@click.option("--link", "links", multiple=True, metavar="HOST:K=V,...", help="Of one host.")
@click.option("--nat-timeout", type=int, default=120, help="Seconds of an idle UDP mapping.")
@click.option("--hairpin", metavar="NAT,...|all", default="", help="NATs that hairpin.")
@click.option("--preserve-ports", is_flag=True, help="Cone NATs keep port numbers.")
@click.option("--overlap", is_flag=True, help="The same private addresses on every LAN.")
@click.option("--public-nets", metavar="NET,NET", default="45.8.1.0/24,45.8.2.0/24")
@click.option("--public-net6", metavar="NET", default="2a0e:aaaa::/32")
@click.option("--seed", type=int, help="Of loss, jitter and reordering.")
@JSON
def up(
    *,
    name: str,
    a: str,
    b: str,
    carol: bool,
    hosts: tuple[str, ...],
    links: tuple[str, ...],
    hairpin: str,
    public_nets: str,
    as_json: bool,
    **others: Any,
) -> None:
    """Bring a lab up."""
    given = {option: others.pop(option) for option in OPTIONS}
    lab = Lab(
        a,
        b,
        carol=carol,
        hosts=dict(_split(host, "=", "NAME=KIND") for host in hosts),
        link=Impairment.parse(",".join(f"{k}={v}" for k, v in given.items() if v is not None)),
        links={
            host: Impairment.parse(text)
            for host, text in (_split(link, ":", "HOST:key=value") for link in links)
        },
        name=name,
        hairpin=hairpin == "all" or frozenset(filter(None, hairpin.split(","))),
        public_nets=tuple(public_nets.split(",")),
        **others,
    )
    lab.up(owned=False)
    describe(lab, as_json=as_json)


def _split(text: str, separator: str, form: str) -> tuple[str, str]:
    first, found, second = text.partition(separator)
    if not found:
        raise NatlabError(f"{text!r}: write {form}")
    return first, second


def describe(lab: Lab, *, as_json: bool) -> None:
    """Print what is where."""
    nodes, links = lab.plan.nodes, lab.plan.links
    if as_json:
        told = ("namespace", "role", "kind", "addresses", "public", "boxes")
        state = {
            "name": lab.name,
            "places": lab.plan.places,
            "links": {host: link.given() for host, link in links.items()},
            "nodes": {
                name: {key: getattr(node, key) for key in told} for name, node in nodes.items()
            },
        }
        click.echo(json.dumps(state, indent=1))
        return
    click.echo(f"lab {lab.name}")
    for host, place in lab.plan.places.items():
        boxes = [
            f"{box} ({nodes[box].kind}, {', '.join(nodes[box].addresses)})"
            for box in nodes[host].boxes
        ]
        way = " -> ".join(boxes) or ("public" if place in (SERVER, "none") else place)
        click.echo(f"  {host:8} {', '.join(nodes[host].addresses)}  {way}")
    for host, link in links.items():
        if link.given():
            told_link = ", ".join(f"{key}={value}" for key, value in link.given().items())
            click.echo(f"  link {host}: {told_link}")


@cli.command("exec", context_settings={"ignore_unknown_options": True})
@NAME
@click.argument("node")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def exec_(name: str, node: str, command: tuple[str, ...]) -> None:
    """Run a command in a node (default: a shell), with its exit code."""
    prefix = Lab.attach(name).command(node)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these, the command must not
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    argv = [*prefix, *(command or (os.environ.get("SHELL", "/bin/sh"),))]
    os.execvpe(argv[0], argv, os.environ | {"NATLAB": name})


@cli.command()
@NAME
@click.option("--all", "every", is_flag=True, help="Every lab, also those of running tests.")
def down(name: str, every: bool) -> None:
    """Take a lab down; fine if it is not up."""
    namespaces.require()
    for each in plan.names() if every else [name]:
        lifecycle.destroy(each)


@cli.command("list")
def list_() -> None:
    """List the labs that are up."""
    for name in plan.names():
        owner = plan.load(name).owner
        click.echo(name + (f"  (of process {owner.pid})" if owner else ""))


@cli.command()
@NAME
@JSON
def info(name: str, as_json: bool) -> None:
    """Describe a lab."""
    describe(Lab.attach(name), as_json=as_json)


@cli.command()
@NAME
@click.argument("node")
@click.option("--public", is_flag=True, help="As the internet sees it.")
@click.option("--ipv6", is_flag=True, help="The IPv6 address.")
def address(name: str, node: str, public: bool, ipv6: bool) -> None:
    """Print the address of a node."""
    lab = Lab.attach(name)
    if ipv6:
        click.echo(lab.address6(node))
    else:
        click.echo(lab.public_address(node) if public else lab.address(node))


@cli.command("set")
@NAME
@click.argument("node")
@click.argument("options", metavar="K=V,...")
def set_(name: str, node: str, options: str) -> None:
    """Change the access link of a host now, for example loss=100%."""
    Lab.attach(name).set_link(node, Impairment.parse(options))


@cli.command()
@NAME
@click.argument("node")
def flush(name: str, node: str) -> None:
    """Have the NATs and firewalls of a host forget everything."""
    Lab.attach(name).flush_nat(node)


@cli.command()
@NAME
@click.argument("node")
def nat(name: str, node: str) -> None:
    """Show the conntrack entries of the NATs and firewalls of a host."""
    for box, lines in Lab.attach(name).nat_table(node).items():
        click.echo("\n  ".join([f"{box}:", *lines]))


@cli.command()
@NAME
def counters(name: str) -> None:
    """Packet counts of the emulated links, as JSON."""
    click.echo(json.dumps(Lab.attach(name).link_counters(), indent=1))


@cli.command()
@click.pass_context
def check(context: click.Context) -> None:
    """Say what this kernel supports; exit code 1 if something is missing."""
    namespaces.require()
    found = kernel_support()
    for finding in found:
        click.echo(f"{'yes' if finding.works else 'NO':4} {finding.what}  {finding.why_not}")
    context.exit(0 if all(finding.works for finding in found) else 1)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("pytest_options", nargs=-1, type=click.UNPROCESSED)
def selftest(pytest_options: tuple[str, ...]) -> None:
    """Prove every kind with real packets: the tests of this laboratory, by pytest."""
    tests = [str(ROOT / "tests" / "e2e" / name) for name in SELF_TEST]
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *tests, *pytest_options])


if __name__ == "__main__":
    cli(prog_name="natlab")
