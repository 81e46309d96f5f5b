"""The fused Triton kernels behind impl="triton", and their launches."""
