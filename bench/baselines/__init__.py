"""What one would do without the platform, each as a process of its own that reads the same topic."""
