"""How fast a model reads and writes on this machine, beside what the machine itself can do."""

from fastllm.bench.child import Lockstep, run
from fastllm.bench.rounds import bench
from fastllm.bench.show import check_plot, plot, table

__all__ = ["Lockstep", "bench", "check_plot", "plot", "run", "table"]
