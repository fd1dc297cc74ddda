"""What the router chose (Mixtral report, arXiv 2401.04088, section 2). Read in this order:

- `tracing`: `trace_many` runs texts through a model and keeps what every router chose.
- `statistics`: `expert_load`, how loads differ between kinds of tokens, what tuning moved.
- `baselines`: what to compare with: random routers, a random adapter.
- `pictures`: loads, also as a film. `explorer`: layers x tokens, as a widget and as a page.

Works on transformers models whose blocks hold `experts` beside a top-k router that returns (logits, weights,
experts): Mixtral, Qwen3-MoE, OLMoE; in 4 bits or not, with or without an adapter.
"""

from aurora_lib.routing import baselines, explorer, pictures, statistics
from aurora_lib.routing.statistics import expert_load
from aurora_lib.routing.tracing import recording, trace_many
