"""Small models of several families, trained, and what ssmdiag says of them held against their exact kernels."""
