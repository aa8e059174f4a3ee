"""The jars of Apache Kafka, fetched once from Maven Central into a cache.

Knows the requirements of a broker (a Java, a Maven) and reports the missing ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KAFKA_VERSION = "4.3.1"
#: For the jars' slf4j 1.7, which comes without a binding: without one a broker logs
#: nothing.
LOG4J_VERSION = "2.25.1"
JAVA_VERSION = 17

_DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"

#: Seconds for Maven to fetch 44 MB. With an empty repository of its own it took 10.
_FETCH_TIMEOUT = 600.0

_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>greendrop</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOG4J_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-core</artifactId>
      <version>{LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""


class KafkaUnavailableError(Exception):
    """Apache Kafka can't run here; the text says what is missing."""


def unavailable_reason() -> str | None:
    """Return why Apache Kafka can't run here, in a few words; None if it can.

    Maven Central is not contacted: an outage is an error, not a reason to skip.
    """
    reason = _java_reason(str(java()))
    if reason:
        return reason
    if not _jars_directory().is_dir() and not shutil.which("mvn"):
        return "no Maven (mvn) on the PATH to fetch Apache Kafka with"
    return None


def java() -> Path:
    """Return the Java to run: the one of $JAVA_HOME, or else of $PATH."""
    home = os.environ.get("JAVA_HOME")
    return Path(home, "bin", "java") if home else Path("java")


def kafka_jars() -> Path:
    """Return the folder with the jars, after fetching them if they are missing.

    Several processes may do so at once: one fetches, the others wait for it.

    Raises:
        KafkaUnavailableError: No Maven, or Maven failed.

    Blocking:
        Some 10 s the first time, at most 20 minutes.
    """
    jars = _jars_directory()
    if jars.is_dir():
        return jars
    jars.parent.mkdir(parents=True, exist_ok=True)
    with _locked(jars.with_name(f"{jars.name}.lock")):
        # The process that had the lock before may have fetched them.
        if not jars.is_dir():
            _fetch(jars)
    return jars


def _jars_directory() -> Path:
    cache = os.environ.get("GREENDROP_CACHE")
    if not cache:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = str(Path(caches, "greendrop"))
    return Path(cache).absolute() / f"kafka-{KAFKA_VERSION}-log4j-{LOG4J_VERSION}-jars"


def _fetch(jars: Path) -> None:
    """Have Maven fetch the jars into a temporary folder, then rename it."""
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=jars.parent) as directory:
        Path(directory, "pom.xml").write_text(_POM)
        fetched = Path(directory, "jars")
        command = [
            "mvn",
            "--batch-mode",
            "--no-transfer-progress",
            f"{_DEPENDENCY_PLUGIN}:copy-dependencies",
            f"-DoutputDirectory={fetched}",
            "-DincludeScope=runtime",
        ]
        try:
            maven = subprocess.run(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_FETCH_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KafkaUnavailableError(
                f"could not fetch Apache Kafka: {error}"
            ) from error
        # Checked, because a failed Maven may still exit with 0.
        if maven.returncode or not list(fetched.glob("kafka_2.13-*.jar")):
            raise KafkaUnavailableError(
                f"could not fetch Apache Kafka, Maven says:\n{maven.stdout[-4000:]}"
            )
        fetched.rename(jars)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes, which is released if its holder is killed."""
    deadline = time.monotonic() + 2 * _FETCH_TIMEOUT
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # flock itself has no time limit, so poll.
                if time.monotonic() > deadline:
                    raise KafkaUnavailableError(
                        f"{path} has been locked for {2 * _FETCH_TIMEOUT:.0f} s"
                    ) from None
                time.sleep(0.1)
        yield


@functools.lru_cache
def _java_reason(java: str) -> str | None:
    """Return the problem with a Java; asking it takes 0.1 s, so once per process."""
    needed = f"no Java {JAVA_VERSION}+"
    try:
        answer = subprocess.run(
            [java, "-version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{needed} ({error})"
    # 'openjdk version "17.0.15" ...' and 'java version "1.8.0_402"'
    version = re.search(r'version "(?:1\.)?(\d+)', answer.stdout)
    if version is None:
        return f"{needed} ({java} -version says {answer.stdout.strip()[:200]!r})"
    if int(version[1]) < JAVA_VERSION:
        return f"{needed} ({java} is {version[1]})"
    return None
