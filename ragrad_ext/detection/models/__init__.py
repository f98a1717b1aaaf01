"""Two-stream detectors."""
