"""`python -m benchmarks fuzz [cases=10000] [minutes=60] [seed=0] [subjects=REGEX]`: damaged and made-up inputs.

A case takes a good input, damages it (bits, bytes, pieces; of texts and JSON also values), and gives it to the code
that reads it. It has to be read, or refused by an error that is meant for users (`UserError`): any other exception
would be a traceback. Where a format has checksums, what is read has to be what was written. What is drawn follows from
(seed, subject, number). Each subject runs in processes of its own, which are limited in memory and, a case, in time.

Counts go to `benchmarks/results/fuzz.json` as they grow, in place of those of the same subject and seed; the same
command goes on with those of the same commit.
"""
