"""Two-stream detectors, paired data, training and reports: a user of the library."""
