"""Observed memory: what a live model retains of real input, and how far back its answers use it.

A text costs one pass for what is observed and some sixteen for what is used (`plan`); without a model's own GPU kernels
a pass over a large Mamba takes minutes on a CPU. `--cuts 0` leaves the use out, `--length` and `--texts` shorten it.
Half-lives longer than the text before their position are counted by that past, and every quantile they reach is marked
`≥`. Each rank reads its share of the texts on a GPU of its own, and the first reports all of them:

    torchrun --nproc-per-node 2 -m ssmdiag probe ~/models/mamba-130m-hf --text book.txt --device cuda

What `check --probe` is given holds a digest of the recurrent weights, in the narrowest dtype that the live model had
them in. Other weights decide what is observed too, and are not in it: measure anew whatever was trained on.
"""
