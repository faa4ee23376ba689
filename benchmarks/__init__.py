"""Speed, claimed only here: ours and a peer on the same work, to the same quality.

`python -m benchmarks` lists what there is. A benchmark is a module
`benchmarks/<chapter>/<concept>.py` with a docstring (what is compared, what was predicted and what
came out), `QUALITY` (what the quality column means) and `cases(size)`; see `benchmarks.harness`.
"""
