"""`benchmark faults`: attacks on the tool's own commands, counted; one module per kind of attack."""
