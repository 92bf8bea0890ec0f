"""XLA's flags: the tests' programs are tiny, and compile for longer than they run."""

from importlib.metadata import version

# The newer emitters take twice as long; from 0.11 on XLA has no others, and ends at a flag it has
# not.
FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
