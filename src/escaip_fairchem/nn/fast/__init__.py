"""The same network with less work: exact rearrangements, and tables at inference.

The modules of :mod:`escaip_fairchem.nn` state the equations and stay the reference; the functions here read the
parameters of those modules and compute the same features. ``execution: plain`` switches them off.
"""
