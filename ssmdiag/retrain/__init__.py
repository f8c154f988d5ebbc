"""Training the same model again under another map, or with its recurrence frozen, and comparing fairly.

`arms` says what is compared, `tasks` on what, `model` is P1's residual block as one batched ensemble,
`training` trains all arms on the same batches, `verdict` says which was better and what it remembers.
"""
