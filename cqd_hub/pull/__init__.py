"""Taking back what others published: read as a stranger's data, rebuilt, checked."""
