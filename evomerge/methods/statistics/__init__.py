"""Methods that need statistics of the experts: activations, gradients or optimiser states."""
