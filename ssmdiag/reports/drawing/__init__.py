"""Pictures as SVG, written by hand: for pages, for files of their own, for notebooks.

A picture knows its points, draws them and lists them, so that the numbers beside it are those it shows.
"""
