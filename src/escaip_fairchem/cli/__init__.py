"""The commands: ``fairchem`` (with ``fairchem main``) and ``escaip``."""
