"""Which RGB weight is the twin of which infrared weight."""
