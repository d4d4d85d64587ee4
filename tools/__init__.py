"""What the Makefile and the image builds call."""
