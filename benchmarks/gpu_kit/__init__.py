"""The GPU kit: the engine's contract tests, the engine and the index on a graphics card, each bounded in time, and a
distillation there.

python -m benchmarks.gpu_kit pack OUT    writes parts that travel one by one to a machine without network
python -m benchmarks.gpu_kit run         runs the steps here; there `python start.py` joins the parts and does the same
python -m benchmarks.gpu_kit distil      distils and exports here; there `python start.py distil`

docs/guides/gpu.md says how to use it.
"""
