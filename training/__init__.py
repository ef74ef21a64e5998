"""Offline training: labelled clips become weights, out-of-fold predictions and stackers. Never ships to
Kaggle.

Imports kernel for everything that also runs in the kernel: front ends, views, finishes, nets, prediction,
metrics.
"""
