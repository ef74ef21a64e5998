"""Cache: every stored array of every row, computed once and kept as long as there is room for it.

In: (front end, row), and a function that computes the array. Out: the array, always: from RAM below 95 % of
the limit, from a spill file, or computed again. Owns the loader threads. Knows neither nets nor plans.
"""
