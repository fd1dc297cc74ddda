"""What the router chose: traces, load, statistics and pictures (Mixtral paper, arXiv 2401.04088, section 2).

Works on every transformers model whose mixture-of-experts blocks hold `experts` beside a top-k router that
returns (logits, weights, experts): Mixtral, Qwen3-MoE, OLMoE; 4-bit or not, with or without an adapter.

This is the front door. Recording is in `routing_trace`, counting without keeping tokens in `routing_counts`, figures
and their baselines in `routing_statistics` and `routing_information`, models to compare with in `routing_models`,
before and after tuning in `routing_shift`, pictures in `routing_pictures`; the widget is `aurora_lib.routing.explorer`.
"""

from aurora_lib.routing.counts import LoadIntervals, RoutingCounts, count, load_by_group
from aurora_lib.routing.information import agreement, information, mutual_information, scripts
from aurora_lib.routing.models import (
    WithoutAdapter,
    random_adapter,
    random_adapter_traces,
    random_router,
    random_traces,
)
from aurora_lib.routing.pictures import (
    load_to_html,
    plot_coactivation,
    plot_groups,
    plot_load,
    plot_statistic,
    to_html,
)
from aurora_lib.routing.shifts import Shift, shift
from aurora_lib.routing.statistics import (
    Coactivation,
    Statistic,
    balance_loss,
    coactivation,
    compare,
    entropy,
    load,
    load_entropy,
    load_gap,
)
from aurora_lib.routing.tracing import (
    RoutingTrace,
    join,
    recording,
    routers,
    select,
    trace,
    trace_generation,
    trace_many,
)

__all__ = [
    "Coactivation",
    "LoadIntervals",
    "RoutingCounts",
    "RoutingTrace",
    "Shift",
    "Statistic",
    "WithoutAdapter",
    "agreement",
    "balance_loss",
    "coactivation",
    "compare",
    "count",
    "entropy",
    "information",
    "join",
    "load",
    "load_by_group",
    "load_entropy",
    "load_gap",
    "load_to_html",
    "mutual_information",
    "plot_coactivation",
    "plot_groups",
    "plot_load",
    "plot_statistic",
    "random_adapter",
    "random_adapter_traces",
    "random_router",
    "random_traces",
    "recording",
    "routers",
    "scripts",
    "select",
    "shift",
    "to_html",
    "trace",
    "trace_generation",
    "trace_many",
]
