"""The model on an NVIDIA GPU: weights packed for csrc/cuda, a whole decode step as one CUDA graph."""
