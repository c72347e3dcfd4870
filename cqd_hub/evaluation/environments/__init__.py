"""The environments that come with cqd-hub, one folder each."""
