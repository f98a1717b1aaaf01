"""The Triton backend: its kernels, and how they are launched."""
