"""The dashboards in examples show the metrics of the listeners, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path

from greendrop.listeners import prometheus, statsd

DASHBOARDS = Path(__file__).parents[2] / "examples" / "dashboards"

#: The metrics that the agent derives from a histogram.
OF_HISTOGRAMS = ("avg", "count", "max", "median", "95percentile")


def strings(part):
    """Yield every text of a JSON value, with its key."""
    if isinstance(part, dict):
        for key, value in part.items():
            if isinstance(value, str):
                yield key, value
            else:
                yield from strings(value)
    elif isinstance(part, list):
        for each in part:
            yield from strings(each)


def test_grafana_shows_the_metrics_of_prometheus():
    """The dashboard shows every metric, and only metrics that exist."""
    dashboard = json.loads((DASHBOARDS / "grafana.json").read_text())
    specs = {spec.name: spec for spec in prometheus.METRICS}
    written = {}
    for name, spec in specs.items():
        suffixes = ("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",)
        written |= {name + suffix: spec for suffix in suffixes}

    expressions = [text for key, text in strings(dashboard) if key in ("expr", "query")]
    used = {name for text in expressions for name in re.findall(r"greendrop_\w+", text)}

    assert used <= written.keys()
    assert {written[name].name for name in used} == specs.keys()


def test_grafana_groups_by_existing_labels():
    """Labels in expressions and legends exist on their metric."""
    dashboard = json.loads((DASHBOARDS / "grafana.json").read_text())
    labels = {spec.name: {*spec.labels} for spec in prometheus.METRICS}
    duration = "greendrop_delivery_duration_seconds"
    labels |= {
        f"{duration}{end}": {"topic", "le"} for end in ("_bucket", "_sum", "_count")
    }

    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            there = {"instance"}.union(
                *(labels[each] for each in re.findall(r"greendrop_\w+", target["expr"]))
            )
            grouped = ", ".join(re.findall(r"by \((.*?)\)", target["expr"]))
            wanted = {*filter(None, grouped.split(", "))}
            wanted |= {*re.findall(r'(\w+)=~?"', target["expr"])}
            wanted |= {*re.findall(r"{{(\w+)}}", target["legendFormat"])}
            assert wanted <= there, panel["title"]


def test_datadog_shows_the_metrics_of_statsd():
    """The dashboard shows every metric, and only metrics that exist."""
    dashboard = json.loads((DASHBOARDS / "datadog.json").read_text())
    histograms = {each.name for each in statsd.METRICS if each.kind == "histogram"}
    histograms.add("buffer.size")
    names = {*statsd.NAMES, *(each.name for each in statsd.METRICS)}
    written = {f"greendrop.{name}": name for name in names - histograms}
    written |= {
        f"greendrop.{name}.{end}": name for name in histograms for end in OF_HISTOGRAMS
    }

    queries = [text for key, text in strings(dashboard) if key == "query"]
    used = {name for text in queries for name in re.findall(r"greendrop[\w.]+", text)}

    assert used <= written.keys()
    assert {written[name] for name in used} == names


def test_datadog_selects_by_existing_tags():
    """A query by topic or broker uses a metric that has that tag."""
    dashboard = json.loads((DASHBOARDS / "datadog.json").read_text())
    brokers = {each.name for each in statsd.METRICS if each.scope == "brokers"}
    topics = {f"{a}_{b}" for a in ("produced", "flushed") for b in ("sync", "async")}

    for query in (text for key, text in strings(dashboard) if key == "query"):
        name = re.search(r"greendrop\.([\w.]+)", query)[1]
        for tag, having in (("broker", brokers), ("topic", topics)):
            if tag in query:
                assert name in having
