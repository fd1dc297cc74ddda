"""What every notebook shares. Read `scale` first: it holds all that differs between `tiny`, `mid` and `full`.

- `scale`: the sizes of the course, in `scales.toml`.
- `paper`: every number of the paper and its repository, each with its source.
- `results`: `start`, with which every notebook begins; what it measured, recorded and set beside the paper.
- `rows`: the rows of any file of JSON or Parquet, whatever state it is in. `hub`: what may ask the hub.
- `html`: a conversation as a page that needs no kernel. `machine`: memory used, now and over time.
"""

from aurora_lib.course import html, machine, paper, results, rows
from aurora_lib.course.hub import asking_hub
from aurora_lib.course.machine import write_whole
from aurora_lib.course.results import start
from aurora_lib.course.scale import DATA, Scale, ScaleError, choose
