"""Jobs: the ledger that says what is stored, the plan, the driver that hands out batches."""
