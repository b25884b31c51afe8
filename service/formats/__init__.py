"""Files that hold gathers or velocity models: npy, npz, SEG-Y, SU, SEG-2, MDIO.

`reader` tells them apart by their first bytes; a reader trusts nothing that it has not checked.
"""

__all__ = ["line_file", "mdio", "npy", "reader", "segy", "starting_model", "traces", "velocity_model"]
