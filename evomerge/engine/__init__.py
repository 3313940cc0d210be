"""The loop that turns an experiment into a ledger: study, worker, pools, loop."""
