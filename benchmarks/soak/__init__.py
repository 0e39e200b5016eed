"""`python -m benchmarks soak [minutes=30] [trials=300] [seed=0] [cases=REGEX] [injuries=REGEX]`: commands, injured.

Each trial starts a command of this project on the smallest network in a session of its own, injures it at a random
moment, lets it be given again as its message says, and compares what it has made, byte by byte, with what the same
command makes when nobody disturbs it. What is drawn follows from (seed, number of the trial). Rows go to
`benchmarks/results/soak.csv` as they land, and the next call goes on behind the last one; `docs/results/soak.md` is
written from them by `python -m benchmarks.soak.page`.

The commands are copies of a process that has imported torch and Lightning but nothing of this project (see
`tests.processes`): otherwise they are what a shell starts. It needs Linux; what needs root (small file systems, a
folder that even root may not write to) is left out for others. Of commands that torchrun starts what its ranks print
is judged, not what it prints itself.
"""
