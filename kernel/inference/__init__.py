"""Inference: from a stored array to the probabilities of one net.

In: stored arrays, a member's description, its weights, a device. Out: f64[K] per row. Owns views (cuts), finishes, devices
and back ends. Does not choose what runs next (engine) or merge nets (scores).
"""
