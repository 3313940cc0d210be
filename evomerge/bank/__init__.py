"""Base and experts held between candidates, and fused kernels that merge them in one pass."""
