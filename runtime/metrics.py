"""What the server counts, for Prometheus: work, latencies, queues, refusals, memory.

Calls from worker threads and the event loop are both fine; the registry is this object's own.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from whisperfold.runtime.memory import resident_bytes

_LATENCY_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Upper bounds; the goals are 0.3 s to the final text, 1 s and 2 s to commits."""
_RTF = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0)


class Metrics:
    """Counters and histograms of one server."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.utterances = Counter("whisperfold_utterances", "Live utterances with text.", registry=registry)
        self.clips = Counter("whisperfold_clips", "Recordings transcribed to the end.", registry=registry)
        self.audio = Counter("whisperfold_audio_seconds", "Audio that was recognised.", registry=registry)
        self.busy = Counter("whisperfold_busy_seconds", "Time that workers took for it.", registry=registry)
        self.rtf = Histogram(
            "whisperfold_clip_rtf", "Processing time / audio time of recordings.", buckets=_RTF, registry=registry
        )
        self.commit_latency = Histogram(
            "whisperfold_commit_latency_seconds",
            "From the end of a word to its commit, without the network.",
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.final_latency = Histogram(
            "whisperfold_final_latency_seconds",
            "From the end of an utterance to its final text, without the network.",
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.rejected = Counter("whisperfold_rejected", "Requests that were refused.", ["reason"], registry=registry)
        self.connections = Gauge(
            "whisperfold_connections", "Open requests and WebSockets.", ["kind"], registry=registry
        )
        self.watch("whisperfold_resident_memory_bytes", "Resident memory of the process.", resident_bytes)

    def observe_clip(self, audio_s: float, busy_s: float) -> None:
        """A recording is done."""
        self.clips.inc()
        self.observe_audio(audio_s, busy_s)
        if audio_s > 0.0:
            self.rtf.observe(busy_s / audio_s)

    def observe_audio(self, audio_s: float, busy_s: float) -> None:
        """Audio has passed a worker."""
        self.audio.inc(audio_s)
        self.busy.inc(busy_s)

    def observe_final(self, latency_s: float) -> None:
        """A live utterance has its final text."""
        self.utterances.inc()
        self.final_latency.observe(latency_s)

    def watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Ask value whenever the metrics are read."""
        Gauge(name, documentation, registry=self.registry).set_function(value)

    def render(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self.registry)
