"""What the models cost: time, memory, and how far both are from what the machine could do.

Every figure is measured on the machine that prints it. Times stand beside a floor: the floating-point operations of the
plain model over the measured rate of matrix products, or the fewest bytes that have to move over the measured
bandwidth, whichever takes longer. The network is timed through ``nn`` alone, which needs nothing but torch and e3nn;
everything of fairchem's comes through ``plugin`` and is reported as not available where it cannot be imported.
"""
