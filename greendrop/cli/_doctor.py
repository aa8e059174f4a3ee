"""The command `greendrop doctor`: checks installation, settings and connection."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from greendrop import _wording
from greendrop.cli import _brokers, _surroundings
from greendrop.cli._finding import Finding
from greendrop.cli._shared import (
    DONE,
    FAILED,
    USAGE,
    UsageError,
    add_connection,
    configuration,
    seconds,
)
from greendrop.config.settings import build_settings
from greendrop.errors import ConfigurationInvalidError
from greendrop.producer import Producer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from greendrop.cli._shared import Commands

_EPILOG = """Run it where your program runs: in the same environment and container, as
the same user. For a program that is patched from outside, run it as
`python -m gevent.monkey --module greendrop doctor`.

Without -t nothing is sent, and no topic is created. Passwords are never shown. The
exit status is 1 if a check has failed, and 2 if options or settings are wrong."""


def add_to(commands: Commands) -> None:
    """Add the command and its options."""
    import argparse

    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="check the installation, the settings and the connection",
        description="Check the installation, the settings and the connection to Kafka.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connection(parser)
    checks = parser.add_argument_group("checks")
    checks.add_argument(
        "-t", "--topic", help="topic to send ten small messages to, to measure latency"
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
        help="how long to wait for the brokers (default: 10)",
    )
    checks.add_argument("--json", action="store_true", help="write JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run all checks, and print each finding at once."""
    if options.gevent:
        from gevent import monkey

        monkey.patch_all()
    findings: list[Finding] = []
    section = ""
    for finding in _check(options):
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
        items = [each._asdict() for each in findings]
        sys.stdout.write(json.dumps(items, indent=2) + "\n")
    else:
        notes = sum(each.state == "note" for each in findings)
        sys.stdout.write(f"\n{failed} failed, {_wording.count(notes, 'note')}\n")
    if any(each.state == "failed" for each in findings if each.section == "settings"):
        return USAGE
    return FAILED if failed else DONE


def _check(options: argparse.Namespace) -> Iterator[Finding]:
    yield from _surroundings.versions()
    yield from _surroundings.process()
    yield from _surroundings.waiting()
    kafka = None
    try:
        kafka = configuration(options)
        settings = build_settings(kafka, {})
        # The constructor lets librdkafka check the settings, too.
        Producer(kafka=kafka)
    except UsageError as error:
        yield Finding("settings", "kafka", "failed", str(error))
        return
    except ConfigurationInvalidError as error:
        for key, text in error.errors.items():
            name = key.removeprefix("kafka.")
            yield Finding("settings", name, "failed", text)
        return
    yield from _brokers.check_settings(settings)
    if (yield from _brokers.check_connection(settings, options.timeout)):
        topic, timeout = options.topic, options.timeout
        yield from _brokers.check_round_trip(settings, topic, timeout)
