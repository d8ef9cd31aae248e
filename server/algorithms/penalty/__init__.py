"""First-order methods that put the lower level into a penalty or a constraint."""
