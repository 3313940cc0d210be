"""What people look at: terminal views and model cards, made from the ledger alone."""
