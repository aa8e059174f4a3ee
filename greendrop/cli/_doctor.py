"""`greendrop doctor`: what there is, whether it works, and what to do about it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from greendrop.cli import _brokers, _surroundings
from greendrop.cli._finding import Finding
from greendrop.cli._shared import (
    DONE,
    FAILED,
    MistakeError,
    add_connection,
    configuration,
    seconds,
)
from greendrop.config import build_settings
from greendrop.errors import ConfigurationInvalidError
from greendrop.producer import Producer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_EPILOG = """Run it where your program runs: same environment, container and user.
`python -m gevent.monkey --module greendrop doctor` looks at a program that is patched
from the outside.

Without -t nothing is sent, and no topic is created. Passwords are never shown. The exit
status is 1 if a check has failed."""


def add_to(commands: Any) -> None:  # noqa: ANN401 - argparse hides its class
    """Describe the options."""
    import argparse

    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="check the installation, the settings and the way to the brokers",
        description="Check the installation, the settings and the way to the brokers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connection(parser)
    checks = parser.add_argument_group("checks")
    checks.add_argument(
        "-t", "--topic", help="send ten small messages there, and time them"
    )
    checks.add_argument(
        "--gevent",
        action="store_true",
        help="check as in a gevent program: monkey.patch_all() first",
    )
    checks.add_argument(
        "--timeout",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="for each answer of a broker (default: 10)",
    )
    checks.add_argument("--json", action="store_true", help="write JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look at everything, and tell each finding as soon as it is there."""
    if options.gevent:
        from gevent import monkey

        monkey.patch_all()
    findings: list[Finding] = []
    section = ""
    for finding in _examine(options):
        findings.append(finding)
        if options.json:
            continue
        if finding.section != section:
            section = finding.section
            sys.stdout.write(f"\n{section}\n" if len(findings) > 1 else f"{section}\n")
        sys.stdout.write(finding.as_text())
        sys.stdout.flush()
    failed = sum(each.state == "failed" for each in findings)
    if options.json:
        found = [each._asdict() for each in findings]
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        doubts = sum(each.state == "note" for each in findings)
        sys.stdout.write(f"\n{failed} failed, {doubts} to be looked at\n")
    return FAILED if failed else DONE


def _examine(options: argparse.Namespace) -> Iterator[Finding]:
    yield from _surroundings.versions()
    yield from _surroundings.process()
    yield from _surroundings.waiting()
    kafka = None
    try:
        kafka = configuration(options)
        settings = build_settings(kafka, {})
        # Asks librdkafka, too.
        Producer(kafka=kafka)
    except MistakeError as mistake:
        yield Finding("settings", "kafka", "failed", str(mistake))
        return
    except ConfigurationInvalidError as error:
        for key, text in error.errors.items():
            name = key.removeprefix("kafka.")
            yield Finding("settings", name, "failed", text)
        return
    yield from _brokers.settings(settings)
    yield from _brokers.reach(settings, options.timeout)
    yield from _brokers.round_trip(settings, options.topic, options.timeout)
