"""Kernels written for GPUs, each with the operator that runs it and the limits within which it may be chosen.

Modules named ``*_triton`` import Triton and are loaded when a kernel is run for the first time; nothing else does.
"""
