"""Ways to divide a budget for the whole model among its layers: `allocate-budget.by`."""
