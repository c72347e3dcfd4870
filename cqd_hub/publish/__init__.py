"""What of a run goes to the Hub, and how it comes back. No torch unless weights are built."""
