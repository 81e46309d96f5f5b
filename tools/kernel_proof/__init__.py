"""Proofs about the Triton kernels from their machine code, without a GPU."""
