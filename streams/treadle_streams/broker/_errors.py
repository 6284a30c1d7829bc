"""Every error of this package.

::

    BrokerError (a treadle_schemas.errors.TreadleError)
    ├── BrokerUnreachable     the configured servers do not answer                    (a retry can help)
    ├── BrokerStartFailed     the broker ended, or was not ready in time; has the log's end
    │   └── BrokerBusy        another process holds the directory's lock for too long (a retry can help)
    ├── BrokerPortTaken       somebody else listens on the port this broker is known by
    ├── BrokerDataDamaged     the data directory is not one this package formatted
    ├── BrokerDirectoryInvalid the path cannot hold a Kafka log
    ├── KafkaJarsUnavailable  the jars could not be had, or are not the pinned ones    (a retry can help)
    ├── DockerFailed          a docker command failed
    ├── NoProvider            the one asked for is not usable on this machine
    └── MissingExtra          an optional dependency is not installed
"""

from __future__ import annotations

from pathlib import Path

from treadle_schemas.errors import TreadleError


class BrokerError(TreadleError):
    """Something about the broker; the message names the value, the place and the way out."""

    exit_code = 5


class BrokerUnreachable(BrokerError):
    """The configured bootstrap servers did not answer; nothing was started in their stead."""

    retriable = True

    def __init__(self, bootstrap: str, waited_s: float, detail: str = "") -> None:
        self.bootstrap = bootstrap
        self.waited_s = waited_s
        self.detail = detail
        cause = f" ({detail})" if detail else ""
        super().__init__(
            f"no Kafka broker answered at {bootstrap!r} within {waited_s:g} s{cause}. It is configured, so no other is "
            "tried. Start it, correct TREADLE_BOOTSTRAP_SERVERS (for SASL or TLS listeners also the client settings: "
            "a wrong password looks like this too), or unset it to let treadle run a local broker."
        )


class BrokerStartFailed(BrokerError):
    """The local broker did not come up. ``log_tail`` is the end of its log."""

    def __init__(self, directory: Path | str, reason: str, log_tail: str = "", *, way_out: str = "") -> None:
        self.directory = Path(directory)
        self.reason = reason
        self.log_tail = log_tail
        tail = f"\n--- end of its log ---\n{log_tail.rstrip()}" if log_tail.strip() else ""
        super().__init__(
            f"the broker in {str(directory)!r} did not start: {reason}. "
            + (way_out or f"Its whole log is {str(Path(directory) / 'broker.log')!r}.")
            + tail
        )


class BrokerBusy(BrokerStartFailed):
    """Another process was starting or stopping the same broker for longer than the deadline."""

    retriable = True

    def __init__(self, directory: Path | str, waited_s: float) -> None:
        super().__init__(
            directory,
            f"another process held its lock for {waited_s:g} s",
            way_out="Wait for the other start or stop to end, then try again.",
        )


class BrokerPortTaken(BrokerError):
    """The port belongs to someone else now, and clients may hold it: another one is not chosen silently."""

    def __init__(self, directory: Path | str, port: int) -> None:
        self.directory = Path(directory)
        self.port = port
        super().__init__(
            f"port 127.0.0.1:{port} of the broker in {str(directory)!r} is used by another program. Stop that program, "
            f"or, when no client still uses the old address, delete {str(Path(directory) / 'ports.json')!r} to get another port."
        )


class BrokerDataDamaged(BrokerError):
    """There is a data directory without Kafka's ``meta.properties``. It is left untouched."""

    def __init__(self, data: Path | str) -> None:
        self.data = Path(data)
        super().__init__(
            f"{str(data)!r} exists but holds no meta.properties, so it is not a complete Kafka log directory. It was not "
            "touched: restore it from a copy, or move it away to start an empty broker."
        )


class BrokerDirectoryInvalid(BrokerError):
    """Kafka splits its log directories at commas, so such a path cannot be used."""

    def __init__(self, directory: Path | str, reason: str) -> None:
        self.directory = Path(directory)
        super().__init__(f"{str(directory)!r} cannot hold a broker: {reason}. Choose another directory (TREADLE_HOME).")


class KafkaJarsUnavailable(BrokerError):
    """Kafka's jars are neither cached nor could they be fetched, or they differ from the pinned set."""

    retriable = True

    def __init__(self, cache: Path | str, reason: str) -> None:
        self.cache = Path(cache)
        self.reason = reason
        super().__init__(
            f"Kafka's jars are not usable in {str(cache)!r}: {reason}. They come from Maven Central once (45 MB): check the "
            "network and try again, copy a filled cache there (TREADLE_CACHE), or name a running broker in "
            "TREADLE_BOOTSTRAP_SERVERS."
        )


class DockerFailed(BrokerError):
    """A docker command returned an error."""

    def __init__(self, command: str, output: str) -> None:
        self.command = command
        self.output = output
        super().__init__(
            f"`{command}` failed: {output.strip()[-1500:] or 'no output'}. Repair Docker, or do without it: "
            "TREADLE_BROKER=local runs the broker as a plain process."
        )


class NoProvider(BrokerError):
    """The provider that was asked for by name cannot be used here."""

    def __init__(self, provider: str, reason: str, way_out: str) -> None:
        self.provider = provider
        super().__init__(f"broker provider {provider!r} is not usable: {reason}. {way_out}")


class MissingExtra(BrokerError):
    """A package of an optional extra is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        self.extra = extra
        self.package = package
        self.command = f"pip install 'treadle[{extra}]'"
        super().__init__(
            f"the local broker needs the package {package!r}, which is not installed. Install it with: {self.command} "
            "(or name a running broker in TREADLE_BOOTSTRAP_SERVERS)."
        )
