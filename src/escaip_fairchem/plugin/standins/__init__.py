"""Pure-PyTorch stand-ins for torch_scatter and torch_sparse, as far as fairchem-core 1.10 uses them.

The two folders beside this file are never imported from here: ``escaip_fairchem._imports`` loads them under the names
``torch_scatter`` and ``torch_sparse`` where the real packages are not installed.
"""
